"""Programs that nobody here wrote, through switches: their own checks and results decide."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from harness import Job, Launcher
from mpi4py_source import mpi4py_tests

from kawarimi_wire.errors import KawarimiError

pytestmark = [pytest.mark.root, pytest.mark.netns]

SWITCHES_AT_LEAST = 10

HPCC_INPUT = """\
HPLinpack benchmark input file
kawarimi
HPL.out      output file name (if any)
8            device out (6=stdout,7=stderr,file)
1            # of problems sizes (N)
400          Ns
1            # of NBs
40           NBs
0            PMAP process mapping (0=Row-,1=Column-major)
1            # of process grids (P x Q)
1            Ps
2            Qs
16.0         threshold
1            # of panel fact
2            PFACTs (0=left, 1=Crout, 2=Right)
1            # of recursive stopping criterium
4            NBMINs (>= 1)
1            # of panels in recursion
2            NDIVs
1            # of recursive panel fact.
1            RFACTs (0=left, 1=Crout, 2=Right)
1            # of broadcast
1            BCASTs (0=1rg,1=1rM,2=2rg,3=2rM,4=Lng,5=LnM)
1            # of lookahead depth
1            DEPTHs (>=0)
2            SWAP (0=bin-exch,1=long,2=mix)
64           swapping threshold
0            L1 in (0=transposed,1=no-transposed) form
0            U  in (0=transposed,1=no-transposed) form
1            Equilibration (0=no,1=yes)
8            memory alignment in double (> 0)
##### This line (no. 32) is ignored (it serves as a separator). ######
0            Number of additional problem sizes for PTRANS
1200         values of N
0            number of additional blocking sizes for PTRANS
40           values of NB
"""

HPCC_RESULTS = re.compile(
    r"^(Success=|PTRANS_residual=|\w+_Errors=|MPIFFT_maxErr=|HPL_hAx1=|HPL_hx1=|HPL_RnormI="
    r"|HPL_Anorm\w=|HPL_Xnorm\w=|\|\|Ax-b\|\|_oo).*$",
    re.MULTILINE,
)
"""Lines of its output that hold results, not times."""


def program(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return Path(found)


async def switch_until_it_ends(job: Job) -> int:
    """Switch to and fro while the job lives; how often that was done."""
    count = 0
    while job.process.returncode is None:
        try:
            await job.switch(("tcp", "vader")[count % 2])
        except (KawarimiError, IndexError):
            break  # the ranks are leaving
        count += 1
        await asyncio.sleep(0.02)  # let the program have some of the time
    return count


async def hpcc(launcher: Launcher, *, switching: bool) -> list[str]:
    directory = launcher.directory / ("switched" if switching else "undisturbed")
    directory.mkdir()
    (directory / "hpccinf.txt").write_text(HPCC_INPUT)
    (directory / "hpcc.sh").write_text(f"#!/bin/sh\ncd {directory} && exec {program('hpcc')}\n")
    (directory / "hpcc.sh").chmod(0o755)
    async with launcher.start(directory / "hpcc.sh", ranks=2) as job:
        if switching:
            assert await switch_until_it_ends(job) >= SWITCHES_AT_LEAST
        await job.succeed()
        await launcher.server.wait(lambda: not launcher.server.ranks, 10)
    text = (directory / "hpccoutf.txt").read_text()
    return [match[0] for match in HPCC_RESULTS.finditer(text)]


async def test_hpcc_computes_the_same(launcher: Launcher) -> None:
    undisturbed = await hpcc(launcher, switching=False)
    assert "Success=1" in undisturbed
    assert len(undisturbed) > 5
    assert await hpcc(launcher, switching=True) == undisturbed


@pytest.mark.parametrize("mode", [(), ("-a",), ("-S",)], ids=["plain", "async", "sync"])
async def test_netpipe_integrity(launcher: Launcher, mode: tuple[str, ...]) -> None:
    """NetPIPE's integrity mode checks every byte of every message."""
    words = ("-i", *mode, "-u", "300000", "-n", "400", "-o", launcher.directory / "np.out")
    async with launcher.start(program("NPopenmpi"), *words, ranks=2) as job:
        switches = await switch_until_it_ends(job)
        text = await job.succeed()
    assert switches >= SWITCHES_AT_LEAST, text
    assert "Integrity check passed" in text
    assert "failed" not in text.lower()


MPI4PY_RESULT = re.compile(r"^(test\w+) \((\S+)\)(?: \.\.\.|\n.* \.\.\.) (.*)$", re.MULTILINE)


async def mpi4py_suite(
    launcher: Launcher, modules: str, deadline_s: float, *, switching: bool
) -> list[Counter[str]]:
    """Run mpi4py's own tests on three ranks; each rank's results by test."""
    directory = launcher.directory / ("switched" if switching else "undisturbed")
    directory.mkdir()
    run = directory / "suite.sh"
    run.write_text(
        f"#!/bin/sh\ncd {mpi4py_tests()} && exec {sys.executable} main.py -v -i '{modules}' "
        f"2>{directory}/$OMPI_COMM_WORLD_RANK\n"
    )
    run.chmod(0o755)
    variables = {"MPI4PY_RC_THREAD_LEVEL": "serialized"}
    async with launcher.start(run, ranks=3, **variables) as job:
        if switching:
            assert await switch_until_it_ends(job) >= SWITCHES_AT_LEAST
        code = await job.exit_code(deadline_s)
        await launcher.server.wait(lambda: not launcher.server.ranks, 10)
    texts = [(directory / str(rank)).read_text() for rank in range(3)]
    assert code == 0, texts[0][-3000:]
    return [Counter(match[0] for match in MPI4PY_RESULT.finditer(text)) for text in texts]


def in_soak(*values: object) -> object:
    return pytest.param(*values, marks=[pytest.mark.soak, pytest.mark.timeout(900)])


@pytest.mark.parametrize(
    ("modules", "at_least"),
    [("test_(p2p|cco)_obj", 50), in_soak("test_p2p", 150), in_soak("test_cco", 500)],
)
async def test_mpi4py_suite(launcher: Launcher, modules: str, at_least: int) -> None:
    undisturbed = await mpi4py_suite(launcher, modules, 300, switching=False)
    assert all(sum(results.values()) >= at_least for results in undisturbed)
    assert await mpi4py_suite(launcher, modules, 600, switching=True) == undisturbed

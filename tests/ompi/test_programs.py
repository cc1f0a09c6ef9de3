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

import hpcc as hpcc_run
from kawarimi_wire.errors import KawarimiError
from soaked import in_soak

pytestmark = [pytest.mark.root, pytest.mark.netns]

SWITCHES_AT_LEAST = 5


@pytest.fixture(params=["btl", "ucp"])
def kind(request: pytest.FixtureRequest) -> str:
    """Both kinds of shim."""
    return str(request.param)


def program(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return Path(found)


async def switch_until_it_ends(job: Job) -> int:
    """Switch to and fro while the job lives; how often that was done."""
    count = 0
    hello = job.ranks[0].hello
    while job.process.returncode is None:
        try:
            await job.switch((hello.fabric, hello.fallback)[count % 2])
        except (KawarimiError, IndexError):
            break  # the ranks are leaving
        count += 1
        await asyncio.sleep(0.02)  # let the program have some of the time
    return count


async def hpcc(launcher: Launcher, kind: str, *, switching: bool) -> list[str]:
    directory = launcher.directory / ("switched" if switching else "undisturbed")
    directory.mkdir()
    (directory / "hpccinf.txt").write_text(hpcc_run.INPUT)
    (directory / "hpcc.sh").write_text(f"#!/bin/sh\ncd {directory} && exec {program('hpcc')}\n")
    (directory / "hpcc.sh").chmod(0o755)
    async with launcher.start(directory / "hpcc.sh", ranks=2, kind=kind) as job:
        if switching:
            assert await switch_until_it_ends(job) >= SWITCHES_AT_LEAST
        await job.succeed()
        await launcher.server.wait(lambda: not launcher.server.ranks, 10)
    return hpcc_run.results((directory / hpcc_run.OUTPUT).read_text())


async def test_hpcc_computes_the_same(launcher: Launcher, kind: str) -> None:
    undisturbed = await hpcc(launcher, kind, switching=False)
    assert "Success=1" in undisturbed
    assert len(undisturbed) > 5
    assert await hpcc(launcher, kind, switching=True) == undisturbed


@pytest.mark.parametrize("mode", [(), ("-a",), ("-S",)], ids=["plain", "async", "sync"])
async def test_netpipe_integrity(launcher: Launcher, kind: str, mode: tuple[str, ...]) -> None:
    """NetPIPE's integrity mode checks every byte of every message."""
    words = ("-i", *mode, "-u", "300000", "-n", "400", "-o", launcher.directory / "np.out")
    async with launcher.start(program("NPopenmpi"), *words, ranks=2, kind=kind) as job:
        switches = await switch_until_it_ends(job)
        text = await job.succeed()
    assert switches >= SWITCHES_AT_LEAST, text
    assert "Integrity check passed" in text
    assert "failed" not in text.lower()


MPI4PY_RESULT = re.compile(r"^(test\w+) \((\S+)\)(?: \.\.\.|\n.* \.\.\.) (.*)$", re.MULTILINE)


async def mpi4py_suite(
    launcher: Launcher, kind: str, what: str, deadline_s: float, *, switching: bool
) -> list[Counter[str]]:
    """Run those of mpi4py's own tests on three ranks; each rank's results by test."""
    directory = launcher.directory / ("switched" if switching else "undisturbed")
    directory.mkdir()
    run = directory / "suite.sh"
    run.write_text(
        f"#!/bin/sh\ncd {mpi4py_tests()} && exec {sys.executable} main.py -v {what} "
        f"2>{directory}/$OMPI_COMM_WORLD_RANK\n"
    )
    run.chmod(0o755)
    variables = {"MPI4PY_RC_THREAD_LEVEL": "serialized"}
    async with launcher.start(run, ranks=3, kind=kind, **variables) as job:
        if switching:
            assert await switch_until_it_ends(job) >= SWITCHES_AT_LEAST
        code = await job.exit_code(deadline_s)
        await launcher.server.wait(lambda: not launcher.server.ranks, 10)
    texts = [(directory / str(rank)).read_text() for rank in range(3)]
    assert code == 0, texts[0][-3000:]
    return [Counter(match[0] for match in MPI4PY_RESULT.finditer(text)) for text in texts]


NOT_SYNCHRONOUS = (
    "cco_obj", "testSendAndRecv", "testISendAndRecv", "testIRecvAndSend", "testIRecvAndISend",
    "testManyISendAndRecv", "testIRecvAndBSend", "testIRecvAndIBSend", "testSendrecv", "testMixed",
    "PingPong", "ObjArg",
)  # fmt: skip
"""Tests that do not ask whether a synchronous send is complete: the kind ucp may say so early."""


@pytest.mark.parametrize(
    ("kind", "modules", "names", "at_least"),
    [
        ("btl", "test_(p2p|cco)_obj", (), 50),
        ("ucp", "test_(p2p|cco)_obj", NOT_SYNCHRONOUS, 50),
        in_soak("btl", "test_p2p", (), 150),
        in_soak("btl", "test_cco", (), 500),
        in_soak("ucp", "test_cco", (), 500),
    ],
)
async def test_mpi4py_suite(
    launcher: Launcher, kind: str, modules: str, names: tuple[str, ...], at_least: int
) -> None:
    what = " ".join([f"-i '{modules}'", *(f"-k {name}" for name in names)])
    undisturbed = await mpi4py_suite(launcher, kind, what, 300, switching=False)
    assert all(sum(results.values()) >= at_least for results in undisturbed)
    assert await mpi4py_suite(launcher, kind, what, 600, switching=True) == undisturbed

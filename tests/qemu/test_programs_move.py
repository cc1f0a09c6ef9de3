"""Programs that nobody here wrote compute what they compute undisturbed, while their guests move.

Each goes the whole cycle, InfiniBand → Ethernet → InfiniBand, on guests that have others to run.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import hpcc
from cluster import Operator, assert_fabric
from kawarimi_agent.jobs import JobSummary
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.job import run_job
from kawarimi_testbed.remote import STATUS, Completed
from kawarimi_testbed.testbed import Testbed
from kawarimi_wire.errors import ExitCode
from kawarimi_wire.messages import ANSWER_MARGIN_S, AskJobs

CYCLE = ("hostb", "hostc")
START_S = 180.0
END_S = 600.0
FOLDER = "/run/programs"


@pytest.fixture(scope="module")
def testbed(at_home: Testbed) -> Testbed:
    return at_home


async def jobs_started(testbed: Testbed, number: int) -> None:
    """Wait until so many jobs of two ranks, one in each guest, can be switched."""
    agent = await testbed.guest("vm1").agent()
    async with asyncio.timeout(START_S):
        while True:
            jobs = await agent.ask(AskJobs(), list[JobSummary], ANSWER_MARGIN_S)
            if [job.connected for job in jobs] == [1] * number:
                assert [job.refusal for job in jobs] == [""] * number
                return
            await asyncio.sleep(0.5)  # nothing announces a job


NETPIPE = ["NPopenmpi", "-i", "-u", "65536", "-n", "150", "-o", f"{FOLDER}/np.out"]
SINGLE = {"MPI4PY_RC_THREAD_LEVEL": "single"}
"""mpi4py asks for MPI_THREAD_MULTIPLE by itself; openib on RoCE takes no level above this one."""
BENCH = ["python3", "-m", "mpi4py.bench", "ringtest", "-n", "4096", "-l", "4000"]
HPCC = ["sh", "-c", f"cd {FOLDER} && exec hpcc"]


def results(netpipe: str, bench: str, outf: str) -> dict[str, object]:
    """What the programs have computed, without the times."""
    return {
        "hpcc": hpcc.results(outf),
        "NetPIPE": re.findall(r"^ *\d+: +\d+ bytes|.*Integrity check.*", netpipe, re.MULTILINE),
        "mpi4py.bench": re.sub(r"= *[\d.e-]+ *seconds", "", bench),
    }


def undisturbed(folder: Path) -> dict[str, object]:
    """Run the programs on this machine, where nothing moves."""
    (folder / "hpccinf.txt").write_text(hpcc.INPUT)
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", "--mca", "pml", "ob1"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*mpirun, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=True
        )

    netpipe = run(*(word.replace(FOLDER, str(folder)) for word in NETPIPE))
    bench = run(sys.executable, *BENCH[1:])
    run("hpcc")
    outf = (folder / hpcc.OUTPUT).read_text()
    return results(netpipe.stderr, bench.stdout, outf)


@pytest.mark.timeout(1200)
async def test_results_are_those_of_an_undisturbed_run(
    testbed: Testbed, operator: Operator, kind: str, tmp_path: Path
) -> None:
    """Three jobs at once, all of which have to be led through both moves."""
    expected = await asyncio.to_thread(undisturbed, tmp_path)
    vm1 = testbed.guest("vm1")
    await vm1.run(f"mkdir -p {FOLDER}; cat >{FOLDER}/hpccinf.txt <<'END'\n{hpcc.INPUT}END\n")
    await testbed.guest("vm2").run(f"mkdir -p {FOLDER}")

    async def run(command: list[str]) -> Completed:
        return await run_job(
            testbed, operator.guests, command, kind=kind, variables=SINGLE, deadline_s=END_S
        )

    async with asyncio.TaskGroup() as group:
        jobs = [group.create_task(run(command)) for command in (NETPIPE, BENCH, HPCC)]
        await jobs_started(testbed, len(jobs))
        for host in CYCLE:
            await operator.migrate(host)
            await assert_fabric(testbed, operator.guests, host)
            assert not any(job.done() for job in jobs)
        # HPCC ends with a gigabyte or so, which is minutes over an emulated HCA.
        for job in json.loads((await operator.run("jobs", "--json")).stdout):
            switched = await operator.run("switch", job["job"], "--to", "tcp", "--json")
            assert switched.exit_code == ExitCode.COMPLETED, switched
    netpipe, bench, _ = (job.result() for job in jobs)
    outf = (await vm1.run(["cat", f"{FOLDER}/{hpcc.OUTPUT}"])).stdout
    assert "Success=1" in outf
    assert "Integrity check passed" in netpipe.stderr
    assert results(netpipe.stderr, bench.stdout, outf) == expected


MELT = """\
units lj
atom_style atomic
lattice fcc 0.8442
region box block 0 10 0 10 0 10
create_box 1 box
create_atoms 1 box
mass 1 1.0
velocity all create 3.0 87287 loop geom
pair_style lj/cut 2.5
pair_coeff 1 1 1.0 1.0 2.5
neighbor 0.3 bin
neigh_modify every 20 delay 0 check no
fix 1 all nve
thermo 50
run 1000
"""
"""LAMMPS' example `melt`, for longer."""


def thermodynamics(text: str) -> list[str]:
    """Return what LAMMPS prints of the state of its atoms."""
    return re.findall(r"^ +\d+(?: +-?[\d.e+-]+){5} *$", text, re.MULTILINE)


def libraries(program: Path) -> list[str]:
    words = ["ldd", program]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    return re.findall(r"=> (/\S+)", done.stdout)


def packed(files: Sequence[str | Path]) -> bytes:
    """Return an archive of files, without their folders."""
    words = ["tar", "-chf", "-", "--transform=s,.*/,,", *files]
    return subprocess.run(words, capture_output=True, timeout=60, check=True).stdout


async def install(guest: Guest, program: Path) -> None:
    """Put a program of this machine, and the libraries that the guest lacks, into its folder."""
    every = " ".join(libraries(program))
    lacking = await guest.run(f"for f in {every}; do [ -e $f ] || echo $f; done")
    archive = packed([program, *lacking.stdout.split()])
    await guest.run(["mkdir", "-p", FOLDER])
    async with guest.remote.session(["tar", "-xf", "-", "-C", FOLDER]) as session:
        for start in range(0, len(archive), 2**16):
            await session.send(archive[start : start + 2**16])
        await session.send(b"")
        async for stream, data in session.frames():
            assert (stream, int(data)) == (STATUS, 0), data


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_lammps(testbed: Testbed, operator: Operator, kind: str, tmp_path: Path) -> None:
    await operator.bring("hosta")
    program = Path(shutil.which("lmp") or "lmp")
    (tmp_path / "in.melt").write_text(MELT)
    alone = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", program]
    undisturbed = await asyncio.to_thread(
        subprocess.run,
        [*alone, "-in", "in.melt"], cwd=tmp_path, capture_output=True, text=True, check=True,
        timeout=300,
    )  # fmt: skip
    for guest in testbed.guests.values():
        await install(guest, program)
    script = f"cat >{FOLDER}/in.melt <<'END'\n{MELT}END\n"
    await testbed.guest("vm1").run(script)
    command = [f"{FOLDER}/lmp", "-in", f"{FOLDER}/in.melt", "-log", "none"]
    variables = {"LD_LIBRARY_PATH": FOLDER}
    running = asyncio.create_task(
        run_job(testbed, operator.guests, command, kind=kind, variables=variables, deadline_s=END_S)
    )
    await jobs_started(testbed, 1)
    for host in CYCLE:
        await operator.migrate(host)
        await assert_fabric(testbed, operator.guests, host)
        assert not running.done()
    computed = thermodynamics((await running).stdout)
    assert len(computed) > 20
    assert computed == thermodynamics(undisturbed.stdout)

"""The rank shim in guests: openib over soft RoCE and back, and the device really let go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import statistics
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import hpcc as hpcc_run
from kawarimi_agent.control import ControlChannel
from kawarimi_agent.coordinator import Switch
from kawarimi_agent.jobs import JobSummary
from kawarimi_agent.remote import find_ranks
from kawarimi_agent.report import SwitchReport
from kawarimi_ompi.build import find_open_mpi
from kawarimi_ompi.launcher import Choice, environment
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.mpi import mpirun_line
from kawarimi_testbed.payload import COMPONENT_FOLDER
from kawarimi_testbed.remote import Completed
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import Topology
from kawarimi_wire.errors import KawarimiError
from kawarimi_wire.messages import AskJobs

CONTROL = "/run/kawarimi/control.sock"
MARKER = "/run/ring-started"
GUESTS = ["vm1", "vm2"]
CYCLES = 20
DEADLINE_S = 30.0
START_DEADLINE_S = 120.0
SWITCHES_AT_LEAST = 4


def program(name: str) -> Path:
    """Find a program of this machine, whose release is that of the guests."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return Path(found)


def library_of(binary: Path, name: str) -> Path:
    """Find the library that a program loads under this name."""
    listed = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    return Path(next(line.split()[2] for line in listed.splitlines() if name in line))


@pytest.fixture(scope="module")
async def testbed(start_testbed) -> AsyncIterator[Testbed]:
    hpcc, netpipe = program("hpcc"), program("NPopenmpi")
    programs = [hpcc, netpipe, library_of(hpcc, "libblas.so.3")]
    async with start_testbed(Topology(name="switch", ssh=True), programs=programs) as testbed:
        for guest in testbed.guests.values():
            await guest.run("setsid kawarimi agent >/dev/ttyS1 2>&1 </dev/null &")
        for guest in testbed.guests.values():
            await guest.run(f"until [ -S {CONTROL} ]; do sleep 0.1; done", deadline_s=60)
        yield testbed


@pytest.fixture(scope="module")
async def controls(testbed) -> AsyncIterator[list[ControlChannel]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            ControlChannel(await stack.enter_async_context(guest.forward(CONTROL)))
            for guest in testbed.guests.values()
        ]


class Job:
    """A job over both guests, its coordinator in this process.

    :ivar running: what mpirun said, once it has ended.
    """

    def __init__(
        self, controls: list[ControlChannel], ranks_per_guest: int, running: asyncio.Task[Completed]
    ) -> None:
        self.running = running
        self._controls = controls
        self._ranks_per_guest = ranks_per_guest
        self._name = ""

    async def hello(self) -> None:
        """Wait until every rank has said hello to its agent."""
        async with asyncio.timeout(START_DEADLINE_S):
            for control in self._controls:
                while not self._name_at(await control.ask(AskJobs(), list[JobSummary], DEADLINE_S)):
                    assert not self.running.done(), self.running
                    await asyncio.sleep(0.05)  # agents have no event for it

    def _name_at(self, jobs: list[JobSummary]) -> str:
        complete = [job.job for job in jobs if job.connected == self._ranks_per_guest]
        self._name = complete[0] if complete else ""
        return self._name

    async def switch(self, to: str) -> SwitchReport:
        ranks = await find_ranks(self._controls, self._name)
        return await Switch(self._name, ranks, to, deadline_s=DEADLINE_S).run()

    async def switch_until_it_ends(self) -> int:
        """Switch to and fro while the job lives; how often that was done."""
        count = 0
        while not self.running.done():
            try:
                await self.switch(("tcp", "openib")[count % 2])
            except (KawarimiError, IndexError):
                break  # the ranks are leaving
            count += 1
            await asyncio.sleep(0.5)  # let the program have most of the time
        return count


@contextlib.asynccontextmanager
async def launch(
    testbed: Testbed, controls: list[ControlChannel], command: list[str], ranks_per_guest: int = 1
) -> AsyncIterator[Job]:
    """Start a job whose fabric is openib; end it if the test leaves it running."""
    words = mpirun_line(testbed.topology, GUESTS, command, ranks_per_guest=ranks_per_guest)
    variables = environment(
        words, {}, find_open_mpi(), Path(COMPONENT_FOLDER), Choice(include="eth0")
    )
    vm1 = testbed.guest("vm1")
    running = asyncio.create_task(vm1.run(words, env=variables, deadline_s=700))
    try:
        job = Job(controls, ranks_per_guest, running)
        await job.hello()
        yield job
        await running
    finally:
        running.cancel()


@contextlib.asynccontextmanager
async def ring(
    testbed: Testbed, controls: list[ControlChannel], ranks_per_guest: int
) -> AsyncIterator[Job]:
    """Run a verified job for as long as the context lasts; it must end well and without errors."""
    vm1 = testbed.guest("vm1")
    command = ["ring", "600", "16384", MARKER]
    async with launch(testbed, controls, command, ranks_per_guest) as job:
        await vm1.run(f"until [ -e {MARKER} ]; do sleep 0.05; done", deadline_s=60)
        yield job
        # The ring looks for this between two iterations, and ends.
        await vm1.run(["rm", MARKER])
        ended = await job.running
    report = json.loads(ended.stdout)
    assert report["errors"] == 0, ended


async def packets_sent(guest: Guest) -> int:
    counter = "/sys/class/infiniband/rxe0/ports/1/hw_counters/sent_pkts"
    return int((await guest.run(f"cat {counter}")).stdout)


async def traffic(guest: Guest) -> int:
    """Return how many verbs packets a guest sends in a while."""
    before = await packets_sent(guest)
    await guest.run("sleep 0.5")
    return await packets_sent(guest) - before


async def held(guest: Guest) -> str:
    """Name what still holds the verbs device: queue pairs, descriptors, mappings."""
    queue_pairs = "rdma resource show qp | grep -v -e 'type GSI' -e 'type SMI'"
    files = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep infiniband"
    mappings = "grep -l infiniband /proc/[0-9]*/maps 2>/dev/null"
    return (await guest.run(f"{queue_pairs}; {files}; {mappings}", check=False)).stdout


@pytest.mark.parametrize("ranks_per_guest", [1, 2])
@pytest.mark.timeout(600)
async def test_twenty_cycles_in_one_job(testbed, controls, figure, ranks_per_guest):
    leave, take, gaps = [], [], []
    async with ring(testbed, controls, ranks_per_guest) as job:
        for cycle in range(CYCLES):
            if cycle in (0, CYCLES - 1):
                assert await traffic(testbed.guest("vm1")) > 0
            left = await job.switch("tcp")
            if cycle in (0, CYCLES - 1):
                assert await traffic(testbed.guest("vm1")) == 0
                for guest in testbed.guests.values():
                    assert await held(guest) == ""
            taken = await job.switch("openib")
            leave.append(left.duration_s)
            take.append(taken.duration_s)
            gaps += [rank.longest_gap_s for rank in (*left.ranks, *taken.ranks)]
        assert await traffic(testbed.guest("vm1")) > 0
    figure(
        f"{CYCLES} cycles: openib → tcp {statistics.median(leave):.2f} s, "
        f"tcp → openib {statistics.median(take):.2f} s (medians); longest time in the shim, "
        f"without a break: {max(gaps) * 1e3:.0f} ms"
    )


@pytest.mark.timeout(600)
async def test_job_started_without_hca_takes_one_plugged_later(testbed, controls):
    for guest in testbed.guests.values():
        await guest.unplug()
    async with ring(testbed, controls, 1) as job:
        for guest in testbed.guests.values():
            await guest.plug()
        for guest in testbed.guests.values():
            await guest.wait_verbs()
        assert await traffic(testbed.guest("vm1")) == 0
        assert (await job.switch("openib")).changed
        assert await traffic(testbed.guest("vm1")) > 0
        assert (await job.switch("tcp")).changed
        assert await traffic(testbed.guest("vm1")) == 0
        for guest in testbed.guests.values():
            assert await held(guest) == ""


async def hpcc(testbed: Testbed, controls: list[ControlChannel], *, switching: bool) -> list[str]:
    vm1 = testbed.guest("vm1")
    folder = "/run/hpcc"
    await vm1.run(f"rm -rf {folder}; mkdir {folder}")
    await vm1.run(f"cat >{folder}/hpccinf.txt <<'END'\n{hpcc_run.INPUT}END\n")
    other = testbed.guest("vm2")
    await other.run(f"mkdir -p {folder}")
    command = ["-x", "LD_LIBRARY_PATH=/opt/kawarimi/bin", "--wdir", folder, "hpcc"]
    async with launch(testbed, controls, command) as job:
        if switching:
            assert await job.switch_until_it_ends() >= SWITCHES_AT_LEAST
    return hpcc_run.results((await vm1.run(f"cat {folder}/{hpcc_run.OUTPUT}")).stdout)


@pytest.mark.timeout(900)
async def test_hpcc_computes_the_same(testbed, controls):
    undisturbed = await hpcc(testbed, controls, switching=False)
    assert "Success=1" in undisturbed
    assert len(undisturbed) > 5
    assert await hpcc(testbed, controls, switching=True) == undisturbed


@pytest.mark.timeout(600)
async def test_netpipe_integrity(testbed, controls):
    command = ["NPopenmpi", "-i", "-u", "65536", "-n", "100", "-o", "/run/netpipe"]
    async with launch(testbed, controls, command) as job:
        switches = await job.switch_until_it_ends()
    ended = await job.running
    text = ended.stdout + ended.stderr
    assert switches >= SWITCHES_AT_LEAST, text
    assert "Integrity check passed" in text
    assert "failed" not in text.lower()


@pytest.mark.timeout(600)
async def test_another_hca_is_taken_after_a_move(testbed, controls):
    """Leave openib, unplug at once, move both guests, plug other HCAs, take openib again."""
    async with ring(testbed, controls, 1) as job:
        await job.switch("tcp")
        for guest in testbed.guests.values():
            assert (await guest.unplug()).duration_s < 5
            await guest.migrate("hostc")
            await guest.plug()
            await guest.wait_verbs()
        await job.switch("openib")
        assert await traffic(testbed.guest("vm1")) > 0

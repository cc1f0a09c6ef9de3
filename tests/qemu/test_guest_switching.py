"""The rank shim in guests: openib over soft RoCE and back, and the device really let go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import Topology
from kawarimi_wire.messages import AskJobs

CONTROL = "/run/kawarimi/control.sock"
MARKER = "/run/ring-started"
GUESTS = ["vm1", "vm2"]
CYCLES = 20
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
async def testbed(start_testbed) -> AsyncIterator[Testbed]:
    async with start_testbed(Topology(name="switch", ssh=True)) as testbed:
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
    """A ring over both guests, its coordinator in this process."""

    def __init__(self, testbed: Testbed, controls: list[ControlChannel], name: str) -> None:
        self._testbed = testbed
        self._controls = controls
        self._name = name

    async def switch(self, to: str) -> SwitchReport:
        ranks = await find_ranks(self._controls, self._name)
        return await Switch(self._name, ranks, to, deadline_s=DEADLINE_S).run()


@contextlib.asynccontextmanager
async def ring(
    testbed: Testbed, controls: list[ControlChannel], ranks_per_guest: int
) -> AsyncIterator[Job]:
    """Run a verified job for as long as the context lasts; it must end well and without errors."""
    vm1 = testbed.guest("vm1")
    command = ["ring", "600", "16384", MARKER]
    words = mpirun_line(testbed.topology, GUESTS, command, ranks_per_guest=ranks_per_guest)
    variables = environment(
        words, {}, find_open_mpi(), Path(COMPONENT_FOLDER), Choice(include="eth0")
    )
    running = asyncio.create_task(vm1.run(words, env=variables, deadline_s=700))
    await vm1.run(f"until [ -e {MARKER} ]; do sleep 0.05; done", deadline_s=60)
    (job,) = await controls[0].ask(AskJobs(), list[JobSummary], DEADLINE_S)
    yield Job(testbed, controls, job.job)
    # The ring looks for this between two iterations, and ends.
    await vm1.run(["rm", MARKER])
    ended = await running
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

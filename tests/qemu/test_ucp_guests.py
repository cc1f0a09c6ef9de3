"""Jobs on PML ucx in guests: rc over soft RoCE and back, and the HCA really taken away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster import Operator, assert_fabric, states
from kawarimi_agent.control import ControlChannel
from kawarimi_agent.coordinator import Switch
from kawarimi_agent.jobs import JobSummary
from kawarimi_agent.remote import find_ranks
from kawarimi_agent.report import SwitchReport
from kawarimi_ompi.build import UCP_LIBRARY
from kawarimi_ompi.launcher import parameters
from kawarimi_ompi.ucp import UcpChoice, launch
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.job import running_ring
from kawarimi_testbed.mpi import mpirun_line
from kawarimi_testbed.payload import COMPONENT_FOLDER
from kawarimi_testbed.remote import Completed
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import Topology
from kawarimi_wire.messages import AskJobs
from kawarimi_wire.phases import Phase, PhaseState

CONTROL = "/run/kawarimi/control.sock"
MARKER = "/run/ring-started"
GUESTS = ["vm1", "vm2"]
CYCLES = 20
DEADLINE_S = 30.0
START_DEADLINE_S = 120.0
ENVIRONMENT = {
    # The testbed's HCAs have one address, and UCX looks for others first.
    "OMPI_MCA_mca_base_env_list": "UCX_IB_GID_INDEX=0",
}


@pytest.fixture(scope="module")
async def testbed(start_testbed) -> AsyncIterator[Testbed]:
    async with start_testbed(Topology(name="ucp", ssh=True)) as testbed:
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
    """A job over both guests, its coordinator in this process."""

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
        complete = [
            job for job in jobs if job.connected == self._ranks_per_guest and job.kind == "ucp"
        ]
        assert all(not job.refusal for job in complete), complete
        self._name = complete[0].job if complete else ""
        return self._name

    async def switch(self, to: str) -> SwitchReport:
        ranks = await find_ranks(self._controls, self._name)
        return await Switch(self._name, ranks, to, deadline_s=DEADLINE_S).run()


@contextlib.asynccontextmanager
async def ring(
    testbed: Testbed, controls: list[ControlChannel], ranks_per_guest: int
) -> AsyncIterator[Job]:
    """Run a verified job for as long as the context lasts; it must end well and without errors."""
    words = mpirun_line(
        testbed.topology,
        GUESTS,
        ["ring", "900", "16384", MARKER],
        ranks_per_guest=ranks_per_guest,
    )
    words, variables = launch(
        words,
        ENVIRONMENT,
        parameters(words, ENVIRONMENT),
        Path(COMPONENT_FOLDER) / UCP_LIBRARY,
        UcpChoice(devices="eth0"),
    )
    vm1 = testbed.guest("vm1")
    running = asyncio.create_task(vm1.run(words, env=variables, deadline_s=1000))
    try:
        job = Job(controls, ranks_per_guest, running)
        await job.hello()
        await vm1.run(f"until [ -e {MARKER} ]; do sleep 0.05; done", deadline_s=60)
        yield job
        # The ring looks for this between two iterations, and ends.
        await vm1.run(["rm", MARKER])
        ended = await running
    finally:
        running.cancel()
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
@pytest.mark.timeout(900)
async def test_twenty_cycles_with_the_hca_unplugged(testbed, controls, figure, ranks_per_guest):
    leave, take, unplugs = [], [], []
    async with ring(testbed, controls, ranks_per_guest) as job:
        for cycle in range(CYCLES):
            if cycle in (0, CYCLES - 1):
                assert await traffic(testbed.guest("vm1")) > 0
            leave.append(await job.switch("tcp"))
            if cycle in (0, CYCLES - 1):
                assert await traffic(testbed.guest("vm1")) == 0
                for guest in testbed.guests.values():
                    assert await held(guest) == ""
            for guest in testbed.guests.values():
                unplugs.append((await guest.unplug()).duration_s)
            for guest in testbed.guests.values():
                await guest.plug()
            for guest in testbed.guests.values():
                await guest.wait_verbs()
            take.append(await job.switch("rc"))
        assert await traffic(testbed.guest("vm1")) > 0
    figure(
        f"{CYCLES} cycles of the kind ucp, medians: unplugging {statistics.median(unplugs):.2f} s; "
        f"rc → tcp {spent(leave)}; tcp → rc {spent(take)}"
    )


def spent(reports: list[SwitchReport]) -> str:
    """Say how long switches took, and their steps; medians."""
    whole = statistics.median(report.duration_s for report in reports)
    steps = {
        step.name: statistics.median(report.steps[i].duration_s for report in reports)
        for i, step in enumerate(reports[0].steps)
    }
    return f"{whole:.2f} s (" + ", ".join(f"{n} {s * 1e3:.0f} ms" for n, s in steps.items()) + ")"


@pytest.fixture(scope="module")
async def cluster(start_testbed) -> AsyncIterator[tuple[Testbed, Operator]]:
    async with start_testbed(Topology(name="ucpjob", agents=True)) as testbed:
        yield testbed, Operator(testbed, testbed.logs / "bridge")


@pytest.mark.parametrize("ranks_per_guest", [1, 2])
@pytest.mark.timeout(600)
async def test_fallback_and_recovery_with_live_migration(cluster, figure, ranks_per_guest):
    """The whole path, by the operator's commands, as the demonstration shows it."""
    testbed, operator = cluster
    await operator.bring("hosta")
    gaps = []
    async with running_ring(
        testbed, operator.guests, ranks_per_guest=ranks_per_guest, kind="ucp"
    ) as job:
        await assert_fabric(testbed, operator.guests, "hosta")
        for host in ("hostb", "hostc", "hosta"):
            before = await job.laps()
            record = await operator.migrate(host)
            await assert_fabric(testbed, operator.guests, host)
            for ended in states(record):
                assert ended[Phase.MIGRATE] is PhaseState.DONE
                fabric = testbed.topology.host(host).fabric
                assert (ended[Phase.RESELECT] is PhaseState.DONE) == bool(fabric)
            assert (await job.laps())[-1].iterations > before[-1].iterations
            gaps.append(record.longest_gap_s)
    assert job.report is not None
    assert job.report.errors == 0
    figure(
        f"3 moves of both guests, kind ucp: a rank's longest gap in a switch "
        f"{max(gaps) * 1e3:.0f} ms, the program's longest exchange "
        f"{job.report.longest_s * 1e3:.0f} ms"
    )

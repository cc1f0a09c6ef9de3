"""A job at full load, two ranks a guest: the fabric is switched under it, and its guests move.

Everything that moves goes through the command line, as an operator would; the ring checks every
byte. `make soak` does it for longer, and with one rank in each guest.
"""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator

import pytest

from cluster import Operator, assert_fabric, states, verbs_traffic
from kawarimi_agent.coordinator import Switch
from kawarimi_agent.jobs import JobSummary
from kawarimi_agent.remote import find_ranks
from kawarimi_agent.report import SwitchReport
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.job import Lap, RingJob, running_ring
from kawarimi_testbed.testbed import Testbed
from kawarimi_wire.messages import AskJobs
from kawarimi_wire.phases import Phase, PhaseState
from kawarimi_wire.record import OperationRecord

DEADLINE_S = 30.0
CYCLES = 5
CYCLES_IN_SOAK = 20
WAYS = ("hostb", "hostd", "hostc", "hosta")
"""From hosta: InfiniBand → Ethernet → Ethernet → InfiniBand (another) → InfiniBand (another)."""
SKIPPED_WITHOUT_FABRIC = (Phase.PLUG, Phase.REPROBE, Phase.RESELECT)


@pytest.fixture(scope="module")
def testbed(at_home: Testbed) -> Testbed:
    return at_home


@pytest.fixture(scope="module")
async def job(testbed, operator) -> AsyncIterator[RingJob]:
    async with running_ring(testbed, operator.guests, ranks_per_guest=2) as job:
        yield job
    assert job.report is not None
    assert job.report.errors == 0


async def switch(testbed: Testbed, to: str) -> SwitchReport:
    """Switch the only job, its coordinator in this process."""
    agents = [await guest.agent() for guest in testbed.guests.values()]
    (job,) = await agents[0].ask(AskJobs(), list[JobSummary], DEADLINE_S)
    ranks = await find_ranks(agents, job.job)
    return await Switch(job.job, ranks, to, deadline_s=DEADLINE_S).run()


async def held(guest: Guest) -> str:
    """Name what still holds the verbs device: queue pairs, descriptors, mappings."""
    queue_pairs = "rdma resource show qp | grep -v -e 'type GSI' -e 'type SMI'"
    files = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep infiniband"
    mappings = "grep -l infiniband /proc/[0-9]*/maps 2>/dev/null"
    return (await guest.run(f"{queue_pairs}; {files}; {mappings}", check=False)).stdout


async def go_to_and_fro(testbed: Testbed, cycles: int) -> str:
    """Switch to TCP and back; see the device let go of, and carry the job again. Say how it was."""
    leave, take, gaps = [], [], []
    for cycle in range(cycles):
        if cycle in (0, cycles - 1):
            assert await verbs_traffic(testbed.guest("vm1")) > 0
        left = await switch(testbed, "tcp")
        if cycle in (0, cycles - 1):
            assert await verbs_traffic(testbed.guest("vm1")) == 0
            for guest in testbed.guests.values():
                assert await held(guest) == ""
        taken = await switch(testbed, "openib")
        leave.append(left.duration_s)
        take.append(taken.duration_s)
        gaps += [rank.longest_gap_s for rank in (*left.ranks, *taken.ranks)]
    assert await verbs_traffic(testbed.guest("vm1")) > 0
    return (
        f"{cycles} cycles: openib → tcp {statistics.median(leave):.2f} s, "
        f"tcp → openib {statistics.median(take):.2f} s (medians); longest time in the shim, "
        f"without a break: {max(gaps) * 1e3:.0f} ms"
    )


async def go_all_ways(operator: Operator, job: RingJob) -> list[OperationRecord]:
    """Move both guests all ways; see after each where they are, and what carries the traffic."""
    records = []
    for host in WAYS:
        before = job.laps[-1].iterations
        record = await operator.migrate(host)
        await assert_fabric(operator.testbed, operator.guests, host)
        fabric = operator.testbed.topology.host(host).fabric
        for ended in states(record):
            skipped = {phase for phase, state in ended.items() if state is PhaseState.SKIPPED}
            assert skipped >= set(() if fabric else SKIPPED_WITHOUT_FABRIC)
            assert ended[Phase.MIGRATE] is PhaseState.DONE
            assert (ended[Phase.RESELECT] is PhaseState.DONE) == bool(fabric)
        assert job.laps[-1].iterations > before
        records.append(record)
    return records


def noticed(records: list[OperationRecord], laps: list[Lap]) -> str:
    """Put into a line what a job noticed of operations."""
    downtime = max(guest.downtime_s or 0 for record in records for guest in record.guests)
    return (
        f"{len(records)} moves of both guests; QEMU's downtime at most {downtime * 1e3:.0f} ms, a "
        f"rank's longest gap in a switch {max(r.longest_gap_s for r in records) * 1e3:.0f} ms, "
        f"the program's longest exchange {max(lap.longest_s for lap in laps) * 1e3:.0f} ms"
    )


async def test_to_and_fro(testbed, job, figure):
    figure(await go_to_and_fro(testbed, CYCLES))


async def test_all_ways(operator, job, figure):
    before = len(job.laps)
    records = await go_all_ways(operator, job)
    figure(noticed(records, job.laps[before:]))


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks_per_guest", [1, 2])
async def test_to_and_fro_in_one_job(testbed, operator, figure, ranks_per_guest):
    await operator.bring("hosta")
    async with running_ring(testbed, operator.guests, ranks_per_guest=ranks_per_guest) as job:
        figure(await go_to_and_fro(testbed, CYCLES_IN_SOAK))
    assert job.report is not None
    assert job.report.errors == 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks_per_guest", [1, 2])
async def test_all_ways_five_times_in_a_row(testbed, operator, figure, ranks_per_guest):
    await operator.bring("hosta")
    guests = operator.guests
    async with running_ring(testbed, guests, ranks_per_guest=ranks_per_guest) as job:
        records = [record for _ in range(5) for record in await go_all_ways(operator, job)]
    assert job.report is not None
    assert job.report.errors == 0
    figure(noticed(records, job.laps))

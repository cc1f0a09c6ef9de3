"""A job at full load, two ranks a guest: the fabric is switched under it, and its guests move.

Everything that moves goes through the command line, as an operator would; the ring checks every
byte. `make soak` does it for longer, and with one rank in each guest.
"""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator

import pytest

from cluster import Operator, assert_arrived, held, switch, verbs_traffic
from kawarimi_testbed.job import Lap, RingJob, running_ring
from kawarimi_testbed.testbed import Testbed
from kawarimi_wire.record import OperationRecord

FABRIC = {"btl": "openib", "ucp": "rc"}
"""What each kind of shim calls it."""
CYCLES = 5
CYCLES_IN_SOAK = 20
WAYS = ("hostb", "hostd", "hostc", "hosta")
"""From hosta: InfiniBand → Ethernet → Ethernet → InfiniBand (another) → InfiniBand (another)."""


@pytest.fixture(scope="module")
def testbed(at_home: Testbed) -> Testbed:
    return at_home


@pytest.fixture(scope="module")
async def job(testbed, operator, kind) -> AsyncIterator[RingJob]:
    async with running_ring(testbed, operator.guests, ranks_per_guest=2, kind=kind) as job:
        yield job
    assert job.report is not None
    assert (job.report.errors, job.said) == (0, [])


async def go_to_and_fro(testbed: Testbed, kind: str, cycles: int) -> str:
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
        taken = await switch(testbed, FABRIC[kind])
        leave.append(left.duration_s)
        take.append(taken.duration_s)
        gaps += [rank.longest_gap_s for rank in (*left.ranks, *taken.ranks)]
    assert await verbs_traffic(testbed.guest("vm1")) > 0
    return (
        f"{cycles} cycles: {FABRIC[kind]} → tcp {statistics.median(leave):.2f} s, and back "
        f"{statistics.median(take):.2f} s (medians); longest time in the shim, without a break: "
        f"{max(gaps) * 1e3:.0f} ms"
    )


async def go_all_ways(operator: Operator, job: RingJob) -> list[OperationRecord]:
    """Move both guests all ways; see after each where they are, and what carries the traffic."""
    records = []
    for host in WAYS:
        before = job.laps[-1].iterations
        record = await operator.migrate(host)
        await assert_arrived(operator.testbed, operator.guests, record, host)
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


async def test_to_and_fro(testbed, job, kind, figure):
    figure(await go_to_and_fro(testbed, kind, CYCLES))


async def test_all_ways(operator, job, figure):
    before = len(job.laps)
    records = await go_all_ways(operator, job)
    figure(noticed(records, job.laps[before:]))


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks_per_guest", [1, 2])
async def test_to_and_fro_in_one_job(testbed, operator, kind, figure, ranks_per_guest):
    await operator.bring("hosta")
    async with running_ring(
        testbed, operator.guests, ranks_per_guest=ranks_per_guest, kind=kind
    ) as job:
        figure(await go_to_and_fro(testbed, kind, CYCLES_IN_SOAK))
    assert job.report is not None
    assert (job.report.errors, job.said) == (0, [])


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks_per_guest", [1, 2])
async def test_all_ways_five_times_in_a_row(testbed, operator, kind, figure, ranks_per_guest):
    await operator.bring("hosta")
    guests = operator.guests
    async with running_ring(testbed, guests, ranks_per_guest=ranks_per_guest, kind=kind) as job:
        records = [record for _ in range(5) for record in await go_all_ways(operator, job)]
    assert job.report is not None
    assert (job.report.errors, job.said) == (0, [])
    figure(noticed(records, job.laps))

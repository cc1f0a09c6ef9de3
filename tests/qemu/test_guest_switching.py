"""The rank shim in guests: openib over soft RoCE and back, and the device really let go."""

from __future__ import annotations

import statistics

import pytest

from cluster import verbs_traffic
from kawarimi_agent.coordinator import Switch
from kawarimi_agent.jobs import JobSummary
from kawarimi_agent.remote import find_ranks
from kawarimi_agent.report import SwitchReport
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.job import running_ring
from kawarimi_testbed.testbed import Testbed
from kawarimi_wire.messages import AskJobs
from soaked import in_soak

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def testbed(at_home: Testbed) -> Testbed:
    return at_home


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


@pytest.mark.parametrize(("ranks_per_guest", "cycles"), [(2, 5), in_soak(1, 20), in_soak(2, 20)])
async def test_cycles_in_one_job(testbed, figure, ranks_per_guest, cycles):
    leave, take, gaps = [], [], []
    async with running_ring(testbed, list(testbed.guests), ranks_per_guest=ranks_per_guest) as job:
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
    assert job.report is not None
    assert job.report.errors == 0
    figure(
        f"{cycles} cycles: openib → tcp {statistics.median(leave):.2f} s, "
        f"tcp → openib {statistics.median(take):.2f} s (medians); longest time in the shim, "
        f"without a break: {max(gaps) * 1e3:.0f} ms"
    )

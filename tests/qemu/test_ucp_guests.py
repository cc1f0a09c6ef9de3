"""Jobs on PML ucx in guests: rc over soft RoCE and back, and the HCA really taken away."""

from __future__ import annotations

import statistics

import pytest

from cluster import held, switch, verbs_traffic
from kawarimi_agent.report import SwitchReport
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.job import running_ring
from kawarimi_testbed.testbed import Testbed

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def testbed(at_home: Testbed) -> Testbed:
    return at_home


async def address(testbed: Testbed, guest: Guest) -> None:
    """Give a guest's HCA the address that its agent would be told to give it after a move."""
    prefix = testbed.topology.hca_prefix(guest.host, guest.name)
    await guest.run(f"ip address replace {prefix} dev $(cat /sys/class/infiniband/rxe0/parent)")


@pytest.mark.parametrize(("ranks_per_guest", "cycles"), [(1, 20), (2, 20)])
async def test_cycles_with_the_hca_unplugged(testbed, figure, ranks_per_guest, cycles):
    leave, take, unplugs = [], [], []
    guests = list(testbed.guests.values())
    async with running_ring(
        testbed, list(testbed.guests), ranks_per_guest=ranks_per_guest, kind="ucp"
    ) as job:
        for cycle in range(cycles):
            if cycle in (0, cycles - 1):
                assert await verbs_traffic(guests[0]) > 0
            leave.append(await switch(testbed, "tcp"))
            if cycle in (0, cycles - 1):
                assert await verbs_traffic(guests[0]) == 0
                for guest in guests:
                    assert await held(guest) == ""
            unplugs += [(await guest.unplug()).duration_s for guest in guests]
            for guest in guests:
                await guest.plug()
            for guest in guests:
                await guest.wait_verbs()
                await address(testbed, guest)
            take.append(await switch(testbed, "rc"))
        assert await verbs_traffic(guests[0]) > 0
    assert job.report is not None
    assert job.report.errors == 0
    figure(
        f"{cycles} cycles of the kind ucp, medians: unplugging {statistics.median(unplugs):.2f} s; "
        f"rc → tcp {spent(leave)}; tcp → rc {spent(take)}"
    )


def spent(reports: list[SwitchReport]) -> str:
    """Say how long switches took, their steps, and what a rank noticed; medians."""
    gap = statistics.median(max(rank.longest_gap_s for rank in report.ranks) for report in reports)
    whole = statistics.median(report.duration_s for report in reports)
    steps = {
        step.name: statistics.median(report.steps[i].duration_s for report in reports)
        for i, step in enumerate(reports[0].steps)
    }
    each = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in steps.items())
    return f"{whole:.2f} s, a gap of {gap * 1e3:.0f} ms ({each})"

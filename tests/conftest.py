"""What all tests share: no silent skip, and figures that are shown at the end of the run."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

MISSING_HARDWARE = "missing hardware: "
"""How the reason of a skip must begin: nothing else may be left out."""

_illegal_skips: list[str] = []
_figures: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs_root = {"root", "netns", "qemu"}
    if os.geteuid() != 0 and any(
        needs_root & {marker.name for marker in item.iter_markers()} for item in items
    ):
        raise pytest.UsageError("these tests make namespaces and guests: run them as root")


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(MISSING_HARDWARE):
            _illegal_skips.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _illegal_skips and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section("figures (this machine, emulated guests)")
        for line in _figures:
            terminalreporter.line(line)
    for line in _illegal_skips:
        terminalreporter.line(f"skipped without naming missing hardware: {line}", red=True)


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Record a line for the end of the run: what was measured, never judged."""

    def record(line: str) -> None:
        _figures.append(f"{request.node.name}: {line}")

    return record

"""A pytest plugin: a test that is skipped without naming missing hardware fails the run."""

from __future__ import annotations

import pytest

MISSING_HARDWARE = "missing hardware: "
"""How the reason of a skip must begin: nothing else may be left out."""

_illegal: list[str] = []


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(MISSING_HARDWARE):
            _illegal.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _illegal and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _illegal:
        terminalreporter.line(f"skipped without naming missing hardware: {line}", red=True)

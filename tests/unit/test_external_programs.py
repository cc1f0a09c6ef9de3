"""Other programs are bounded, logged, and ended with everything they started."""

from __future__ import annotations

import os
import threading

import psutil
import pytest

from kawarimi_testbed.commands import Programs
from kawarimi_wire.errors import ExecutionFailed, Slug


@pytest.fixture
def programs(tmp_path) -> Programs:
    return Programs(tmp_path / "log")


def test_output_is_returned_and_errors_are_logged(programs):
    assert programs.run(["sh", "-c", "echo out; echo err >&2"], deadline_s=10) == "out\n"
    assert programs.log.read_text().splitlines()[1:] == ["err"]


def test_a_failure_quotes_the_log(programs):
    with pytest.raises(ExecutionFailed) as caught:
        programs.run(["sh", "-c", "echo no such mirror >&2; exit 3"], deadline_s=10)
    assert caught.value.slug is Slug.COMMAND_FAILED
    assert caught.value.facts["exit_code"] == 3
    assert "no such mirror" in caught.value.what
    assert str(programs.log) in caught.value.hint


def test_a_deadline_ends_the_whole_session(programs, tmp_path):
    script = f"sleep 987 & echo $! > {tmp_path}/child; wait"
    with pytest.raises(ExecutionFailed) as caught:
        programs.run(["sh", "-c", script], deadline_s=1)
    assert caught.value.slug is Slug.COMMAND_TIMEOUT
    assert ended(int((tmp_path / "child").read_text()))


def test_end_ends_what_other_threads_run(programs, tmp_path):
    failed: list[ExecutionFailed] = []

    def work() -> None:
        try:
            programs.run(["sh", "-c", f"echo $$ > {tmp_path}/child; sleep 987"], deadline_s=60)
        except ExecutionFailed as error:
            failed.append(error)

    worker = threading.Thread(target=work)
    os.mkfifo(tmp_path / "child")
    worker.start()
    child = int((tmp_path / "child").read_text())  # waits for it to be written
    programs.end()
    worker.join(timeout=10)
    assert failed[0].slug is Slug.COMMAND_FAILED
    assert ended(child)
    with pytest.raises(ExecutionFailed) as caught:
        programs.run(["true"], deadline_s=10)
    assert caught.value.slug is Slug.INTERRUPTED


def ended(process: int) -> bool:
    """Return whether a process has ended, given a moment to."""
    try:
        psutil.Process(process).wait(timeout=5)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True

"""`kawarimi testbed sh` as a person uses it: on a terminal, and in a pipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kawarimi_testbed.testbed import Testbed
from terminal import Terminal

PROMPT = "# "


@pytest.fixture
def sh(testbed: Testbed) -> list[str]:
    program = [sys.executable, "-m", "kawarimi_bridge.cli.main"]
    return [*program, "testbed", "sh", "--name", testbed.topology.name, "vm1"]


def test_a_shell_on_a_terminal(sh):
    with Terminal(sh, rows=33, columns=101) as terminal:
        terminal.until(PROMPT)
        terminal.type("stty size\r")
        terminal.until("33 101")
        terminal.resize(40, 120)
        terminal.type("stty size\r")
        terminal.until("40 120")
        assert not terminal.is_as_before
        terminal.type("exit 7\r")
        assert terminal.ended() == 7
        assert terminal.is_as_before


def test_what_is_typed_is_shown_at_once(sh):
    """Not with the next key: the guest echoes, nobody here waits for more."""
    with Terminal(sh) as terminal:
        terminal.until(PROMPT)
        for key in "echo":
            terminal.type(key)
            terminal.until(key, deadline_s=5)


def test_ctrl_c_interrupts_the_command_and_not_the_shell(sh):
    with Terminal(sh) as terminal:
        terminal.until(PROMPT)
        terminal.type("cat\r")
        terminal.until("cat\r\n")
        terminal.type("key\r")
        terminal.until("key\r\nkey\r\n")  # echoed by the terminal, then by the command
        terminal.type("\x03")
        terminal.until(PROMPT)
        terminal.type("exit $?\r")
        assert terminal.ended() == 128 + 2
        assert terminal.is_as_before


def test_one_command_on_a_terminal(sh):
    with Terminal([*sh, "test -t 0 && test -t 1 && exit 9"]) as terminal:
        assert terminal.ended() == 9


def test_output_to_a_file_is_as_the_command_wrote_it(sh, tmp_path):
    target = tmp_path / "out"
    with Terminal(
        ["sh", "-c", f'"$@" > {target}', "sh", *sh, "echo out; echo err >&2"]
    ) as terminal:
        assert terminal.ended() == 0
        assert target.read_bytes() == b"out\n"
        assert terminal.shown == "err\r\n"


def test_a_reader_that_has_seen_enough(sh, tmp_path):
    errors = tmp_path / "errors"
    words = ["bash", "-c", 'set -o pipefail; "$@" 2> "$0" | head -1', str(errors), *sh, "yes"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (128 + 13, "y\n")
    assert Path(errors).read_text() == ""


def test_input_that_nobody_reads(sh):
    done = subprocess.run([*sh, "true"], input=b"x" * 2**24, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

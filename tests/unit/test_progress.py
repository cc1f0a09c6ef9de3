"""Progress on a terminal, and silence elsewhere."""

from __future__ import annotations

import subprocess
import sys

from terminal import Terminal

STEPS = """
from kawarimi_bridge.cli.output import Progress
progress = Progress()
with progress.step("a step with a long title"):
    with progress.step("short"):
        pass
try:
    with progress.step("fails"):
        raise ValueError
except ValueError:
    pass
"""


def screen(written: str) -> list[str]:
    """Return the lines that a terminal shows for what was written to it."""
    lines = []
    for line in written.removesuffix("\r\n").split("\r\n"):
        shown = ""
        for part in line.split("\r"):
            text, erase, _ = part.partition("\x1b[K")
            shown = text + ("" if erase else shown[len(text) :])
        lines.append(shown)
    return lines


def test_steps_on_a_terminal_leave_one_line_each():
    with Terminal([sys.executable, "-c", STEPS]) as terminal:
        assert terminal.ended() == 0
    assert "· a step with a long title …" in terminal.shown
    assert screen(terminal.shown) == [
        "  ✓ short (0.0 s)",
        "✓ a step with a long title (0.0 s)",
        "✗ fails (0.0 s)",
    ]


def test_no_progress_where_nobody_looks():
    done = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, timeout=30, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")

"""A skip that names no missing hardware fails the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ('pytest.skip("missing hardware: an InfiniBand HCA")', pytest.ExitCode.OK),
        ('pytest.skip("not today")', pytest.ExitCode.TESTS_FAILED),
        ('pytest.importorskip("no_such_module")', pytest.ExitCode.TESTS_FAILED),
        ("pass", pytest.ExitCode.OK),
    ],
)
def test_a_skip_needs_its_reason(tmp_path, how, code):
    (tmp_path / "test_it.py").write_text(f"import pytest\ndef test_it():\n    {how}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "strict_skips", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout

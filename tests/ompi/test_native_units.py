"""The parts of the component that need no Open MPI, under sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from harness import PROGRAMS

from kawarimi_ompi.build import native_sources

FUZZ_INPUTS = int(os.environ.get("KAWARIMI_FUZZ_INPUTS", "100000"))
"""A short run; by hand a million."""


def compile_with(sanitizer: str, program: str, units: tuple[str, ...], binary: Path) -> None:
    native = native_sources()
    command = [
        *("gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"),
        *(f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f"-I{native}"),
        f"-I{native / 'ucp'}",
        *("-o", str(binary), str(PROGRAMS / f"{program}.c")),
        *(str(native / f"{unit}.c") for unit in units),
        "-lpthread",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("program", "unit"), [("fuzz_parser", "protocol"), ("fuzz_address", "ucp/address")]
)
def test_fuzzed_parser(tmp_path: Path, program: str, unit: str) -> None:
    compile_with("address,undefined", program, (unit,), tmp_path / "fuzz")
    for seed in (1, 2):
        command = [str(tmp_path / "fuzz"), str(FUZZ_INPUTS // 2), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("OK")


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_link_under_sanitizer(tmp_path: Path, sanitizer: str) -> None:
    compile_with(
        sanitizer, "link_alone", ("link", "protocol", "queues", "stall"), tmp_path / "link"
    )
    command = [str(tmp_path / "link"), str(tmp_path / "socket"), "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OK")

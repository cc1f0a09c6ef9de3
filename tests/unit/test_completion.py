"""Shells complete kawarimi's words, without importing what nobody asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kawarimi_bridge.cli.main import SUBCOMMANDS, main
from kawarimi_wire.errors import ExitCode

PROGRAM = "import sys; from kawarimi_bridge.cli.main import main; code = 1\n"
PROGRAM += "try: code = main([])\nfinally: print([m for m in sys.modules if 'asyncio' in m])"


def completed(words: str, **more: str) -> list[str]:
    count = len(words.split(" ")) - 1
    environment = {"_KAWARIMI_COMPLETE": "bash_complete", "COMP_WORDS": words}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **environment, "COMP_CWORD": str(count), **more},
    )
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "[]" or "testbed" in words
    return [line.partition(",")[2] for line in lines]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(capsys, shell):
    assert main(["completion", shell]) == ExitCode.COMPLETED
    script = capsys.readouterr().out
    assert f"_KAWARIMI_COMPLETE={shell}_complete" in script
    assert "kawarimi" in script


def test_another_shell_is_a_usage_error():
    assert main(["completion", "tcsh"]) == ExitCode.USAGE


def test_subcommands_options_and_operations_are_completed(tmp_path):
    assert completed("kawarimi ") == sorted(SUBCOMMANDS)
    assert completed("kawarimi rep") == ["report"]
    assert completed("kawarimi --v") == ["--version"]
    assert completed("kawarimi testbed st") == ["status"]
    (tmp_path / "operations/20260102-030405-aaaa").mkdir(parents=True)
    state = str(tmp_path)
    assert completed("kawarimi report ", KAWARIMI_STATE=state) == ["last", "20260102-030405-aaaa"]

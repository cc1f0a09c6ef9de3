"""Where the testbed keeps what it makes."""

from __future__ import annotations

import os
from pathlib import Path


def _xdg(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "kawarimi" / "testbed"


def cache_dir() -> Path:
    """Return the folder of built images: `$XDG_CACHE_HOME/kawarimi/testbed`."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def state_dir() -> Path:
    """Return the folder of the logs of testbeds: `$XDG_STATE_HOME/kawarimi/testbed`."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def run_dir(name: str) -> Path:
    """Return the folder of a running testbed: its sockets, its lock, its description."""
    return Path("/run/kawarimi/testbed") / name


def package_dir() -> Path:
    """Return the folder of this package, where the guest files and programs are."""
    return Path(__file__).parent

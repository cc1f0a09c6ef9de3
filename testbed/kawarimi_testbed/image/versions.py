"""What apt would install: asked of it once, for it takes seconds, and only an `update` changes it.

A note of the last image that was found or built, beside the images; a note that is missing, damaged
or of another state of apt costs nothing but the question.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kawarimi_testbed.paths import cache_dir

_APT = (Path("/var/lib/apt/lists"), Path("/etc/apt"))
"""What apt's answer depends on."""


class Versions(msgspec.Struct, frozen=True):
    """The versions of an image.

    :ivar state: of apt, and what it was asked for; `packages`: the file names of all that it named.
    """

    state: str
    packages: list[str]


def apt_state(packages: Sequence[str]) -> str:
    """Return a digest that changes when apt's lists or settings do, or what is asked of it."""
    digest = hashlib.sha256("\n".join(packages).encode())
    for path in sorted(path for folder in _APT for path in folder.rglob("*") if path.is_file()):
        about = path.stat()
        digest.update(f"{path}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def recall(state: str) -> Versions | None:
    """Return what was noted of this state of apt."""
    try:
        noted = msgspec.json.decode(_note().read_bytes(), type=Versions)
    except (OSError, msgspec.DecodeError):
        return None
    return noted if noted.state == state else None


def note(versions: Versions) -> None:
    """Note versions for the next time, unless they are noted, or the cache cannot be written."""
    if recall(versions.state) == versions:
        return
    partial = _note().with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        partial.write_bytes(msgspec.json.encode(versions))
        partial.replace(_note())


def _note() -> Path:
    return cache_dir() / "versions.json"

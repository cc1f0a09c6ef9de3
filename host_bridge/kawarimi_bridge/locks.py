"""One operation at a time on a guest, and who holds it.

POSIX record locks: they die with their process, and say whose they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from kawarimi_bridge.operations import operations_dir
from kawarimi_wire.errors import PreflightRefused, Scope, Slug

_FLOCK = struct.Struct("hhqqi4x")
"""`struct flock` of Linux on 64-bit machines: type, whence, start, length, process."""


def holder(path: Path) -> int | None:
    """Return the process that holds a lock; None if nobody does."""
    try:
        with path.open("rb") as file:
            asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except FileNotFoundError:
        return None
    return None if kind == fcntl.F_UNLCK else int(pid)


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a lock for as long as the context lasts; False if somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


@contextlib.contextmanager
def guests_held(guests: Sequence[str]) -> Iterator[None]:
    """Keep every other operation from these guests for as long as the context lasts.

    :raise PreflightRefused: `guest-busy`, with the process that holds one of them.
    """
    with contextlib.ExitStack() as stack:
        for guest in sorted(guests):
            path = guest_lock(guest)
            if not stack.enter_context(held(path)):
                raise PreflightRefused(
                    Slug.GUEST_BUSY,
                    f"Another operation has {guest}: process {holder(path)}.",
                    untouched="every guest and every job",
                    hint="see 'kawarimi status'; wait, or end it with 'kawarimi abort'",
                    scope=Scope.GUEST,
                )
        yield


def guest_lock(guest: str) -> Path:
    """Return the lock of a guest."""
    return operations_dir().parent / "locks" / quote(guest, safe="")

"""What an MPI program in Python (mpi4py) may ask of the shim in its own process, and tell it.

::

    from kawarimi_ompi import program

    program.transports()                       # {1: ("openib",), 2: ("vader",)}
    program.on_switch(lambda switch: print(switch.transport, switch.longest_gap_s))
    with program.not_now("writes its checkpoint"):
        ...

A program needs none of this to be switched. Where the shim is not loaded, `not_now` and `on_switch`
do nothing, `loaded` says so, and the questions raise `PreflightRefused`.

Everything here is for the thread that calls MPI, between MPI's initialisation and its end.
Callbacks run in Python's main thread, between two instructions of the program, as signal handlers
do: the program is in no MPI function then (unless MPI itself called Python, for an operation of the
program's own), and the callback may call MPI, though the other ranks may not be at the same place.
A rank that a poke has switched while it computed is told in one of its next MPI calls that wait.

The functions are those that the loaded component exports; `native/kawarimi_program.h` says what
each does, and is read from there.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from typing import Any

import cffi
import msgspec

from kawarimi_wire.errors import PreflightRefused, Scope, Slug

log = logging.getLogger(__name__)


class Exchange(msgspec.Struct, frozen=True):
    """One completed switch, as this process saw it; times in seconds.

    :ivar number: counted in this process, from 1 on.
    :ivar transport: the BTL that carries the messages since.
    :ivar stall_s: time in the shim, in this thread.
    :ivar longest_gap_s: the longest time without a break in it: the process could do nothing else.
    """

    number: int
    transport: str
    stall_s: float
    longest_gap_s: float


@cache
def _parsed() -> tuple[cffi.FFI, Any]:
    """Parse the C header; returns the parser, and the process with every library in it."""
    text = (resources.files(__package__) / "native" / "kawarimi_program.h").read_text()
    ffi = cffi.FFI()
    ffi.cdef("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return ffi, ffi.dlopen(None)


def loaded() -> bool:
    """Whether the shim is in this process, in a version that is understood here."""
    _, shim = _parsed()
    try:
        return bool(shim.kawarimi_program_version() == shim.KAWARIMI_PROGRAM_VERSION)
    except AttributeError:
        return False


def _shim() -> tuple[cffi.FFI, Any]:
    if not loaded():
        raise PreflightRefused(
            Slug.SHIM_NOT_LOADED,
            "the shim is not in this process",
            untouched="the program runs on",
            hint="start the job with 'kawarimi run', and ask after MPI has been initialised",
            scope=Scope.RANK,
        )
    return _parsed()


def refusal() -> str:
    """Say why this process is not going to be switched; empty if it can be.

    :raise PreflightRefused: `shim-not-loaded`.
    """
    ffi, shim = _shim()
    text = shim.kawarimi_program_refusal()
    return ffi.string(text).decode(errors="replace") if text else ""


def transports() -> dict[int, tuple[str, ...]]:
    """Tell the BTLs that carry messages to each other rank of MPI_COMM_WORLD.

    Ranks to whom nothing was sent, and no connection was prepared, are left out.

    :raise PreflightRefused: `shim-not-loaded`.
    """
    ffi, shim = _shim()
    count = shim.kawarimi_program_peers(ffi.NULL, 0)
    peers = ffi.new("struct kawarimi_peer[]", count)
    count = min(count, shim.kawarimi_program_peers(peers, count))
    return {
        peer.rank: tuple(ffi.string(peer.names[i]).decode() for i in range(peer.transports))
        for peer in peers[0:count]
    }


def last_switch() -> Exchange | None:
    """Tell the last switch of this process; None if there was none.

    :raise PreflightRefused: `shim-not-loaded`.
    """
    ffi, shim = _shim()
    last = ffi.new("struct kawarimi_switch *")
    shim.kawarimi_program_last_switch(last)
    if not last.number:
        return None
    return Exchange(
        last.number,
        ffi.string(last.transport).decode(),
        last.stall_total_ns / 1e9,
        last.stall_longest_ns / 1e9,
    )


_watchers: list[Callable[[Exchange], None]] = []


def _tell() -> None:
    exchange = last_switch()
    for watcher in list(_watchers):
        try:
            assert exchange is not None
            watcher(exchange)
        except Exception:
            # As with any callback: nobody is there to whom it could be raised.
            log.exception("a callback after a switch failed")


@cache
def _pending_call() -> tuple[Any, Any]:
    """Make what the component is given: Python's own way to come back between two instructions."""
    ffi, _ = _parsed()
    address = ctypes.cast(ctypes.pythonapi.Py_AddPendingCall, ctypes.c_void_p).value
    schedule = ffi.cast("int (*)(kawarimi_callback *, void *)", address)

    def run(_: Any) -> int:
        _tell()
        return 0

    return schedule, ffi.callback("kawarimi_callback", run)


def on_switch(callback: Callable[[Exchange], None]) -> Callable[[], None]:
    """Have `callback` called after each switch of this process.

    Several switches in quick succession may be told as one, the last. What the callback raises is
    logged. Returns a function that ends it. Does nothing where the shim is not loaded.
    """
    _watchers.append(callback)
    if loaded():
        ffi, shim = _parsed()
        shim.kawarimi_program_watch(*_pending_call(), ffi.NULL)

    def end() -> None:
        if callback in _watchers:
            _watchers.remove(callback)

    return end


@contextlib.contextmanager
def not_now(reason: str) -> Iterator[None]:
    """Do not let a switch, or a hold, begin within this section; sections may be nested.

    Whoever wants one waits, until the deadline of that operation, and is told this rank and the
    outermost section's reason then. One that is past its step `select` or `init` goes on. Does
    nothing where the shim is not loaded.

    :param reason: for people, as in "rank 3: writes its checkpoint".
    """
    if not loaded():
        yield
        return
    _, shim = _parsed()
    shim.kawarimi_program_defer(reason.encode())
    try:
        yield
    finally:
        shim.kawarimi_program_allow()

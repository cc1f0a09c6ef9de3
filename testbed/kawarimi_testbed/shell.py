"""A guest's shell, or one command in it, on this terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import termios
import tty
from collections.abc import Iterator, Sequence

from kawarimi_testbed.remote import STATUS, STDERR, Remote, Session
from kawarimi_wire.errors import ExecutionFailed, Scope, Slug


async def run_shell(remote: Remote, command: Sequence[str]) -> int:
    """Run a command in a guest with this process's standard streams, and return its exit code.

    Without a command, an interactive shell. With a terminal on standard input and output, the
    command has one too, of the same size; it is in raw mode here for as long.

    :raise ExecutionFailed: `guest-unreachable`, also if the guest goes away meanwhile.
    """
    terminal = os.isatty(0) and os.isatty(1)
    line = " ".join(command) if len(command) == 1 else shlex.join(command)
    argv = ["/bin/sh", "-c", line] if line else ["/bin/sh", "-i"]
    async with remote.session(argv, tty=_size() if terminal else None) as session:
        with _raw_terminal(session) if terminal else contextlib.nullcontext():
            forward = asyncio.create_task(_forward_stdin(session))
            try:
                async for stream, data in session.frames():
                    if stream == STATUS:
                        return int(data)
                    try:
                        os.write(2 if stream == STDERR else 1, data)
                    except BrokenPipeError:  # whoever read it has seen enough
                        return 128 + signal.SIGPIPE
            except ConnectionError as error:
                raise ExecutionFailed(
                    Slug.GUEST_UNREACHABLE,
                    f"The guest {remote.guest} went away: {error}.",
                    scope=Scope.GUEST,
                ) from error
            finally:
                forward.cancel()
    raise AssertionError("frames() ends with a status")


async def _forward_stdin(session: Session) -> None:
    with contextlib.suppress(ConnectionError):  # frames() raises it too
        data = b"?"
        while data:
            await _stdin_readable()
            data = os.read(0, 65536)
            await session.send(data)


async def _stdin_readable() -> None:
    """Wait until standard input can be read: once for each read, which would block otherwise."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(0, readable.set)
    except PermissionError:  # a regular file: always readable
        return
    try:
        await readable.wait()
    finally:
        loop.remove_reader(0)


def _size() -> tuple[int, int]:
    columns, rows = os.get_terminal_size(0)
    return rows, columns


@contextlib.contextmanager
def _raw_terminal(session: Session) -> Iterator[None]:
    """Hand every key to the command, and every change of the terminal's size."""
    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(0)
    tty.setraw(0)
    loop.add_signal_handler(signal.SIGWINCH, lambda: session.resize(*_size()))
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        termios.tcsetattr(0, termios.TCSADRAIN, before)

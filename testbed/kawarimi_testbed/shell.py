"""A guest's shell, or one command in it, on this terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import sys
import termios
import tty
from collections.abc import Iterator, Sequence

from kawarimi_testbed.remote import STATUS, STDERR, Remote, Session
from kawarimi_wire.errors import ExecutionFailed, Scope, Slug


async def run_shell(remote: Remote, command: Sequence[str]) -> int:
    """Run a command in a guest with this process's standard streams, and return its exit code.

    Without a command, an interactive shell. With a terminal on standard input, the command has one
    too, in raw mode here for as long.

    :raise ExecutionFailed: `guest-unreachable`, also if the guest goes away meanwhile.
    """
    terminal = sys.stdin.isatty()
    line = " ".join(command) if len(command) == 1 else shlex.join(command)
    script = line or "exec sh -i"
    if terminal:
        columns, rows = shutil.get_terminal_size()
        script = f"stty rows {rows} cols {columns}; {script}"
    async with remote.session(["/bin/sh", "-c", script], tty=terminal) as session:
        with _raw_terminal() if terminal else contextlib.nullcontext():
            forward = asyncio.create_task(_forward_stdin(session))
            try:
                async for stream, data in session.frames():
                    if stream == STATUS:
                        return int(data)
                    os.write(2 if stream == STDERR else 1, data)
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
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(0, readable.set)
    except PermissionError:  # a regular file: always readable
        await session.send(sys.stdin.buffer.read())
        await session.send(b"")
        return
    try:
        while True:
            await readable.wait()
            readable.clear()
            data = os.read(0, 65536)
            await session.send(data)
            if not data:
                return
    finally:
        loop.remove_reader(0)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)

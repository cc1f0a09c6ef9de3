"""Run commands in a guest from the harness: the client of guest_files/rshd.py.

Spoken from inside the testbed's switch namespace, where the harness has an address on the guests'
Ethernet. A guest answers at the same address on every host, so that nobody here need know where.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import socket
import struct
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from pyroute2 import netns

from kawarimi_wire.errors import ExecutionFailed, Scope, Slug

RSHD_PORT = 514
STDIN, STDOUT, STDERR, STATUS, WINDOW = range(5)
_HEADER = struct.Struct(">BI")
_CONNECT_DEADLINE_S = 5.0
_QUOTED_CHARACTERS = 2000


@dataclass(frozen=True)
class Completed:
    """A command that has ended in a guest."""

    exit_code: int
    stdout: str
    stderr: str


def socket_in(namespace: str) -> socket.socket:
    """Return a TCP socket that belongs to a network namespace.

    A socket stays in the namespace in which it was made. The thread that makes it never comes back.
    """
    made: list[socket.socket | OSError] = []

    def make() -> None:
        try:
            netns.setns(namespace, flags=0)  # of this thread alone
            made.append(socket.socket())
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    (result,) = made
    if isinstance(result, OSError):
        raise result
    return result


class Session:
    """A command that runs in a guest, with its streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Write to the command's standard input; nothing (`b""`) closes it."""
        self._writer.write(_HEADER.pack(STDIN, len(data)) + data)
        await self._writer.drain()

    def resize(self, rows: int, columns: int) -> None:
        """Give the command's terminal, which it must have, another size."""
        data = msgspec.json.encode((rows, columns))
        self._writer.write(_HEADER.pack(WINDOW, len(data)) + data)

    async def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield what the command writes, as (stream, data); the last is (STATUS, exit code).

        :raise ConnectionError: if the guest goes away before that.
        """
        while True:
            try:
                stream, length = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
                data = await self._reader.readexactly(length)
            except asyncio.IncompleteReadError as error:
                raise ConnectionResetError("the guest closed the connection") from error
            yield stream, data
            if stream == STATUS:
                return


class Remote:
    """Runs commands in one guest."""

    def __init__(self, guest: str, namespace: str, address: str) -> None:
        self.guest = guest
        self._namespace = namespace
        self._address = address

    @contextlib.asynccontextmanager
    async def session(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        tty: tuple[int, int] | None = None,
    ) -> AsyncIterator[Session]:
        """Start a command; leaving this ends it.

        :param tty: the rows and columns of the terminal that it is to have; None for none.
        :raise ExecutionFailed: `guest-unreachable`.
        """
        try:
            sock = await asyncio.to_thread(socket_in, self._namespace)
            sock.setblocking(False)
            await asyncio.wait_for(
                asyncio.get_running_loop().sock_connect(sock, (self._address, RSHD_PORT)),
                _CONNECT_DEADLINE_S,
            )
        except (OSError, TimeoutError) as error:
            raise ExecutionFailed(
                Slug.GUEST_UNREACHABLE,
                f"The guest {self.guest} does not answer at {self._address}.",
                hint="see its console.log",
                scope=Scope.GUEST,
                facts={"cause": str(error) or type(error).__name__},
            ) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            request = {"argv": list(argv), "env": dict(env or {}), "tty": tty}
            writer.write(msgspec.json.encode(request) + b"\n")
            yield Session(reader, writer)
        finally:
            writer.close()

    async def run(
        self,
        command: str | Sequence[str],
        *,
        deadline_s: float = 30.0,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> Completed:
        """Run a command to its end; a string is run by a shell.

        :param deadline_s: seconds until it is ended.
        :param check: whether a non-zero exit code is an error.
        :raise ExecutionFailed: `guest-unreachable`, `command-failed` or `command-timeout`, with
            what the command had written.
        """
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        written: dict[int, bytearray] = {STDOUT: bytearray(), STDERR: bytearray()}
        exit_code = None
        try:
            async with asyncio.timeout(deadline_s), self.session(argv, env=env) as session:
                await session.send(b"")
                async for stream, data in session.frames():
                    if stream == STATUS:
                        exit_code = int(data)
                    else:
                        written[stream] += data
        except (TimeoutError, ConnectionError) as error:
            timeout = isinstance(error, TimeoutError)
            raise self._failed(
                Slug.COMMAND_TIMEOUT if timeout else Slug.GUEST_UNREACHABLE,
                f"did not end in {deadline_s:.0f} s" if timeout else f"was cut off: {error}",
                argv,
                written,
            ) from error
        assert exit_code is not None
        if check and exit_code != 0:
            raise self._failed(
                Slug.COMMAND_FAILED, f"failed with exit code {exit_code}", argv, written
            )
        return Completed(exit_code, _text(written[STDOUT]), _text(written[STDERR]))

    def _failed(
        self, slug: Slug, how: str, argv: Sequence[str], written: Mapping[int, bytearray]
    ) -> ExecutionFailed:
        command = argv[2] if list(argv[:2]) == ["/bin/sh", "-c"] else shlex.join(argv)
        return ExecutionFailed(
            slug,
            f"In {self.guest}, {command!r} {how}.",
            scope=Scope.GUEST,
            facts={
                "stdout": _text(written[STDOUT])[-_QUOTED_CHARACTERS:],
                "stderr": _text(written[STDERR])[-_QUOTED_CHARACTERS:],
            },
        )


def _text(data: bytearray) -> str:
    return data.decode("utf-8", "replace")

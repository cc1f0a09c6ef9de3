"""The agent's control socket: one request and one answer per connection, a line of JSON each.

Unix stream socket; who asks is known from the kernel, not from the request. Both ends are of one
version, being on one machine: nobody need say hello.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import TypeVar

import msgspec

from kawarimi_agent.desk import Desk, encode
from kawarimi_wire.errors import ExecutionFailed, OutcomeUnknown, Slug
from kawarimi_wire.messages import MAX_MESSAGE, Answer, Ask, Envelope

RUN_DIRECTORY = Path("/run/kawarimi")
RANKS_SOCKET = "ranks.sock"
CONTROL_SOCKET = "control.sock"

REQUEST_DEADLINE_S = 5.0
"""A connection that has not sent its request by then is closed."""

_T = TypeVar("_T")


class ControlServer:
    """Hands requests from the users of this machine to the desk."""

    def __init__(self, path: Path, desk: Desk) -> None:
        self.path = path
        self._desk = desk
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen.

        :raise OSError: the socket cannot be made; nothing is left behind.
        """
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path, limit=MAX_MESSAGE)
        self.path.chmod(0o666)

    async def stop(self) -> None:
        """Stop listening. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: socket.socket = writer.get_extra_info("socket")
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        uid = struct.unpack("3i", raw)[1]
        try:
            request = self._desk.read(await _line(reader))
            if isinstance(request, Envelope):
                writer.write(await self._desk.answer(request, uid) + b"\n")
            else:
                writer.write(encode(request) + b"\n")
            await writer.drain()
        except (OSError, TimeoutError):
            return  # whoever asked is gone; what was begun has ended
        finally:
            writer.close()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Read a request; of one that is too long, nothing, which is no request either."""
    async with asyncio.timeout(REQUEST_DEADLINE_S):
        try:
            return await reader.readline()
        except ValueError:
            return b""


class ControlChannel:
    """The way to an agent through its control socket, or through whatever forwards one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def ask(self, request: Ask, answer_type: type[_T], deadline_s: float) -> _T:
        """Ask the agent, and wait for its answer; see `kawarimi_wire.messages.Channel`."""
        try:
            reader, writer = await asyncio.open_unix_connection(self.path, limit=MAX_MESSAGE)
        except OSError as error:
            raise ExecutionFailed(
                Slug.AGENT_UNREACHABLE,
                f"no agent answers at {self.path}: {error.strerror}",
                untouched="every job",
                hint="start 'kawarimi agent'",
            ) from error
        try:
            async with asyncio.timeout(deadline_s):
                writer.write(msgspec.json.encode(Envelope(1, request)) + b"\n")
                await writer.drain()
                line = await reader.readline()
        except (TimeoutError, OSError) as error:
            raise OutcomeUnknown(
                Slug.AGENT_UNREACHABLE,
                "the agent did not answer",
                hint="ask again with 'kawarimi jobs'",
            ) from error
        finally:
            writer.close()
        if not line:
            raise OutcomeUnknown(
                Slug.AGENT_UNREACHABLE,
                "the agent went away before it answered",
                hint="start it again, then ask with 'kawarimi jobs'",
            )
        return msgspec.json.decode(line, type=Answer).result(answer_type)

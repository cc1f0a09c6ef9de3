"""The agent's control socket: one JSON request and one JSON answer per connection.

Unix stream socket; who asks is known from the kernel, not from the request. Both ends are of one
version, being on one machine; a request that is not understood is answered with an error.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kawarimi_agent.jobs import Jobs, JobStatus, JobSummary, RankEntry
from kawarimi_agent.report import SwitchReport
from kawarimi_ompi.protocol import Command, Reply
from kawarimi_wire import errors
from kawarimi_wire.errors import (
    ExecutionFailed,
    KawarimiError,
    OutcomeUnknown,
    Scope,
    Slug,
    UsageError,
)

RUN_DIRECTORY = Path("/run/kawarimi")
RANKS_SOCKET = "ranks.sock"
CONTROL_SOCKET = "control.sock"

REQUEST_DEADLINE_S = 5.0
MARGIN_S = 15.0
"""How long the agent may take beyond the operation's own deadline: the way back is in it."""

_LIMIT = 1 << 24

_T = TypeVar("_T")


class ListJobs(msgspec.Struct, frozen=True, tag="jobs", tag_field="ask"):
    """Summarise every job."""


class AskStatus(msgspec.Struct, frozen=True, tag="status", tag_field="ask"):
    """Ask the ranks of one job where they stand."""

    job: str
    deadline_s: float


class AskSwitch(msgspec.Struct, frozen=True, tag="switch", tag_field="ask"):
    """Bring one job to another BTL."""

    job: str
    to: str
    deadline_s: float
    poke: bool


class AskRanks(msgspec.Struct, frozen=True, tag="ranks", tag_field="ask"):
    """List the ranks of one job that are connected here."""

    job: str


class AskCall(msgspec.Struct, frozen=True, tag="call", tag_field="ask"):
    """Send one command to one rank."""

    job: str
    vpid: int
    command: Command


Request = ListJobs | AskStatus | AskSwitch | AskRanks | AskCall
Answer = list[JobSummary] | JobStatus | SwitchReport | list[RankEntry] | Reply


class _Failure(msgspec.Struct, frozen=True):
    kind: str
    slug: Slug
    what: str
    untouched: str
    hint: str
    scope: Scope
    facts: dict[str, Any]


class ControlServer:
    """Answers requests about the jobs of one agent."""

    def __init__(self, path: Path, jobs: Jobs) -> None:
        self.path = path
        self._jobs = jobs
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen.

        :raise OSError: the socket cannot be made; nothing is left behind.
        """
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path, limit=_LIMIT)
        self.path.chmod(0o666)

    async def stop(self) -> None:
        """Stop listening. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(reader, writer)
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()
        except (OSError, TimeoutError):
            return  # whoever asked is gone; what was begun has ended
        finally:
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> dict[str, object]:
        peer: socket.socket = writer.get_extra_info("socket")
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        uid = struct.unpack("3i", raw)[1]
        try:
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                line = await reader.readline()
            request: Request = msgspec.json.decode(line, type=Request)
            return {"answer": await self._act(request, uid)}
        except (msgspec.DecodeError, ValueError) as error:
            return {"error": _failure(UsageError(Slug.BAD_USAGE, f"not a request: {error}"))}
        except KawarimiError as error:
            return {"error": _failure(error)}

    async def _act(self, request: Request, uid: int) -> Answer:
        if isinstance(request, ListJobs):
            return self._jobs.summaries()
        if isinstance(request, AskStatus):
            return await self._jobs.status(request.job, uid, deadline_s=request.deadline_s)
        if isinstance(request, AskRanks):
            return self._jobs.ranks(request.job, uid)
        if isinstance(request, AskCall):
            return await self._jobs.call(request.job, uid, request.vpid, request.command)
        return await self._jobs.switch(
            request.job, uid, request.to, deadline_s=request.deadline_s, poke=request.poke
        )


def _failure(error: KawarimiError) -> _Failure:
    return _Failure(
        type(error).__name__,
        error.slug,
        error.what,
        error.untouched,
        error.hint,
        error.scope,
        error.facts,
    )


def _raise(failure: _Failure) -> None:
    kind = getattr(errors, failure.kind, ExecutionFailed)
    raise kind(
        failure.slug,
        failure.what,
        untouched=failure.untouched,
        hint=failure.hint,
        scope=failure.scope,
        facts=failure.facts,
    )


async def _ask(path: Path, request: Request, deadline_s: float) -> bytes:
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=_LIMIT)
    except OSError as error:
        raise ExecutionFailed(
            Slug.AGENT_UNREACHABLE,
            f"no agent answers at {path}: {error.strerror}",
            untouched="every job",
            hint="start 'kawarimi agent'",
        ) from error
    try:
        async with asyncio.timeout(deadline_s):
            writer.write(msgspec.json.encode(request) + b"\n")
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
    return line


async def ask_within(path: Path, request: Request, answer: type[_T], deadline_s: float = 0.0) -> _T:
    """Ask an agent, and wait for its answer.

    :param deadline_s: what the request itself may take.
    :raise KawarimiError: what the agent raised, or that it cannot be reached.
    """
    line = await _ask(path, request, deadline_s + MARGIN_S)
    said = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    if "error" in said:
        _raise(msgspec.json.decode(said["error"], type=_Failure))
    return msgspec.json.decode(said["answer"], type=answer)


def ask(path: Path, request: Request, answer: type[_T], deadline_s: float = 0.0) -> _T:
    """Ask an agent from a program that runs no event loop; see `ask_within`."""
    return asyncio.run(ask_within(path, request, answer, deadline_s))

"""Where every request to the agent is answered, whichever way it came.

The control socket and the ZeroMQ endpoint hand over the message as it arrived and the user on whose
behalf it asks; they get back the message to send. Nothing that arrives can raise through here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from kawarimi_agent.jobs import Jobs
from kawarimi_ompi.protocol import Command
from kawarimi_wire.errors import (
    ExecutionFailed,
    KawarimiError,
    OutcomeUnknown,
    PreflightRefused,
    Scope,
    Slug,
    UsageError,
)
from kawarimi_wire.messages import (
    VERSION,
    Answer,
    AskCall,
    AskDevice,
    AskHello,
    AskJobs,
    AskProbeClose,
    AskProbeOpen,
    AskProbeRun,
    AskRanks,
    AskReleased,
    AskRetransmit,
    AskStatus,
    AskSwitch,
    Envelope,
    Failure,
    Hello,
)

log = logging.getLogger(__name__)

LONGEST_S = 30.0
"""How long a request may take beyond its own deadline: a switch's way back is in it."""

Handler = Callable[[Any, int], Awaitable[object]]
"""Acts on one kind of request for a user; what it returns is what is answered."""

_FOR_ROOT = (AskReleased, AskDevice, AskProbeOpen, AskProbeRun, AskProbeClose, AskRetransmit)
"""What changes the guest, or tells of other users' processes."""


class _Number(msgspec.Struct):
    number: int = 0


class Desk:
    """Answers requests.

    :param hello: who this agent is.
    :param jobs: the jobs whose ranks are connected.
    """

    def __init__(self, hello: Hello, jobs: Jobs) -> None:
        self._hello = hello
        self._jobs = jobs
        self._decoder = msgspec.json.Decoder(Envelope)
        self._handlers: dict[type[object], Handler] = {
            AskHello: self._greet,
            AskJobs: self._list_jobs,
            AskStatus: self._status,
            AskSwitch: self._switch,
            AskRanks: self._ranks,
            AskCall: self._call,
        }

    def add(self, kind: type[object], handler: Handler) -> None:
        """Let a handler answer one more kind of request."""
        self._handlers[kind] = handler

    def read(self, message: bytes) -> Envelope | Answer:
        """Return the request in a message, or the answer to one that is none."""
        try:
            return self._decoder.decode(message)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            refusal = UsageError(Slug.BAD_USAGE, f"not a request: {error}")
            return Answer(_number(message), failure=Failure.of(refusal))

    async def answer(self, envelope: Envelope, uid: int) -> bytes:
        """Act on a request and return the answer, encoded; an error is an answer too."""
        try:
            content = await self._act(envelope, uid)
            return encode(Answer(envelope.number, msgspec.Raw(msgspec.json.encode(content))))
        except KawarimiError as error:
            return encode(Answer(envelope.number, failure=Failure.of(error)))
        except Exception as error:
            log.exception("a request failed: %s", type(envelope.body).__name__)
            failed = ExecutionFailed(
                Slug.INTERNAL,
                f"the agent failed: {type(error).__name__}: {error}",
                hint="see the agent's log, and report it",
                scope=Scope.GUEST,
            )
            return encode(Answer(envelope.number, failure=Failure.of(failed)))

    async def _act(self, envelope: Envelope, uid: int) -> object:
        body = envelope.body
        if isinstance(body, _FOR_ROOT) and uid != 0:
            raise PreflightRefused(
                Slug.NOT_ROOT,
                f"only root, or the bridge, may ask this of the agent; you are user {uid}",
                untouched="the guest",
            )
        longest_s = getattr(body, "deadline_s", 0.0) + LONGEST_S
        try:
            async with asyncio.timeout(longest_s):
                return await self._handlers[type(body)](body, uid)
        except TimeoutError as error:
            raise OutcomeUnknown(
                Slug.INTERNAL,
                f"the agent has not done it {longest_s:g} s after it was asked",
                hint="see the agent's log, and report it",
                scope=Scope.GUEST,
            ) from error

    async def _greet(self, request: AskHello, uid: int) -> Hello:
        if request.version != VERSION:
            raise PreflightRefused(
                Slug.AGENT_VERSION,
                f"the agent of {self._hello.guest} (kawarimi {self._hello.software}) speaks "
                f"version {VERSION} of the protocol, not {request.version}",
                untouched="the guest and its jobs",
                hint="install the same version of kawarimi on the host and in the guest",
                scope=Scope.GUEST,
                facts={"agent": VERSION, "bridge": request.version},
            )
        return self._hello

    async def _list_jobs(self, request: AskJobs, uid: int) -> object:
        return self._jobs.summaries()

    async def _status(self, request: AskStatus, uid: int) -> object:
        return await self._jobs.status(request.job, uid, deadline_s=request.deadline_s)

    async def _switch(self, request: AskSwitch, uid: int) -> object:
        return await self._jobs.switch(
            request.job, uid, request.to, deadline_s=request.deadline_s, poke=request.poke
        )

    async def _ranks(self, request: AskRanks, uid: int) -> object:
        return self._jobs.ranks(request.job, uid)

    async def _call(self, request: AskCall, uid: int) -> object:
        try:
            command = msgspec.json.decode(request.command, type=Command)
        except (msgspec.DecodeError, ValueError) as error:
            raise UsageError(Slug.BAD_USAGE, f"not a command: {error}") from error
        return await self._jobs.call(request.job, uid, request.vpid, command)


def encode(answer: Answer) -> bytes:
    """Encode an answer as one line without its end."""
    return msgspec.json.encode(answer)


def _number(message: bytes) -> int:
    """Return the number of a message that is no request, as far as it can be made out."""
    try:
        return msgspec.json.decode(message, type=_Number).number
    except (msgspec.DecodeError, ValueError, RecursionError):
        return 0

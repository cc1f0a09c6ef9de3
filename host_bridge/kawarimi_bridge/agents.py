"""The bridge's connection to one guest's agent, over ZeroMQ with CURVE.

A connection lasts as long as the guest does, and follows it from host to host: a guest that
migrates stands still for a moment and goes on with the same TCP connection. So nothing here gives
a connection up for a silence: ZeroMQ's heartbeats stay off, TCP's own keep-alive takes a minute and
a half. What is bounded is every request. Should the connection break (the agent restarts), ZeroMQ
makes it again, and the next request says hello first; requests that were under way end with
`OutcomeUnknown`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TypeVar

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from kawarimi_wire.errors import (
    ExecutionFailed,
    OutcomeUnknown,
    PreflightRefused,
    Scope,
    Slug,
)
from kawarimi_wire.keys import KeyPair
from kawarimi_wire.messages import (
    MAX_MESSAGE,
    VERSION,
    Answer,
    Ask,
    AskHello,
    Envelope,
    Hello,
)

log = logging.getLogger(__name__)

_RECONNECT_MS = (50, 1000)
"""Pause before a connection is tried again: the first one, the longest."""

_CONNECT_MS = 2000
"""Gives up one try to connect: a guest that boots leaves the first packets unanswered."""

_KEEPALIVE_S = (30, 10, 6)

_BROKEN_HANDSHAKES = 3
"""A handshake that just breaks off is that of a wrong server key, or of an agent that ends."""

_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)

_T = TypeVar("_T")


class AgentClient:
    """A connection to the agent of one guest; made by `connect`.

    Any number of requests may be under way.

    :ivar guest: the guest's name.
    :ivar hello: what its agent said of itself, last time.
    """

    def __init__(self, guest: str, endpoint: str, context: zmq.asyncio.Context) -> None:
        self.guest = guest
        self.hello: Hello | None = None
        self._endpoint = endpoint
        self._socket = context.socket(zmq.DEALER)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._up = asyncio.Event()
        self._refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def connect(
        cls,
        guest: str,
        endpoint: str,
        server_key: bytes | None,
        keys: KeyPair | None,
        deadline_s: float,
        *,
        context: zmq.asyncio.Context | None = None,
    ) -> AgentClient:
        """Connect to a guest's agent and say hello.

        :param guest: the name that the guest has to have.
        :param server_key: the agent's public key, as Z85 text; None, like `keys`, for an agent
            that runs with --insecure.
        :param context: whose threads connect: it decides the network namespace. By default, the
            process's own.
        :raise ExecutionFailed: `agent-unreachable` or `agent-keys`.
        :raise PreflightRefused: `agent-version`, or `unknown-guest` if it is another guest.
        """
        client = cls(guest, endpoint, context or zmq.asyncio.Context.instance())
        try:
            client._open(server_key, keys)
            await client._greet(asyncio.get_running_loop().time() + deadline_s)
        except BaseException:
            await client.close()
            raise
        return client

    async def ask(
        self,
        request: Ask,
        answer_type: type[_T],
        deadline_s: float,
        *,
        operation: str = "",
        phase: str = "",
        attempt: int = 0,
    ) -> _T:
        """Ask the agent, and wait for its answer.

        :param deadline_s: when to give up. A request with a deadline of its own is answered at
            that; see `kawarimi_wire.messages.ANSWER_MARGIN_S`.
        :param operation: with `phase` and `attempt`: what the request belongs to.
        :raise KawarimiError: what the agent raised.
        :raise ExecutionFailed: `agent-unreachable` or `agent-keys`: the request was not sent.
        :raise OutcomeUnknown: `agent-unreachable`: it was sent, and no answer came.
        """
        ends = asyncio.get_running_loop().time() + deadline_s
        while True:
            answer = await self._exchange(request, ends, operation, phase, attempt)
            if answer.failure is None or answer.failure.slug is not Slug.AGENT_VERSION:
                return answer.result(answer_type)
            await self._greet(ends)  # an agent that has started anew wants it first

    async def close(self) -> None:
        """Close the connection; requests under way end with `OutcomeUnknown`. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._give_up("the connection was closed")
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._socket.close()

    def _open(self, server_key: bytes | None, keys: KeyPair | None) -> None:
        socket = self._socket
        socket.linger = 0  # what was not sent when we leave is not sent
        socket.immediate = True  # nothing waits in a connection that is not there
        socket.maxmsgsize = MAX_MESSAGE
        socket.reconnect_ivl, socket.reconnect_ivl_max = _RECONNECT_MS
        socket.connect_timeout = _CONNECT_MS
        idle, interval, count = _KEEPALIVE_S
        socket.tcp_keepalive = 1
        socket.tcp_keepalive_idle = idle
        socket.tcp_keepalive_intvl = interval
        socket.tcp_keepalive_cnt = count
        if server_key is not None and keys is not None:
            socket.curve_serverkey = server_key
            socket.curve_publickey = keys.public
            socket.curve_secretkey = keys.secret
        monitor = socket.get_monitor_socket(_EVENTS)
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._watch(monitor)))
        self._tasks.append(loop.create_task(self._listen()))
        socket.connect(self._endpoint)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        """Follow the connection's state."""
        broken = 0
        try:
            while True:
                event = parse_monitor_message(await monitor.recv_multipart())
                kind, value = event["event"], event["value"]
                if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self._up.set()
                    broken = 0
                    if self._refused.done():  # by an agent that has been set right since
                        self._refused = asyncio.get_running_loop().create_future()
                    continue
                self._up.clear()
                self._give_up("the connection broke")
                if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    self._refuse(f"it does not admit our key (status {value})")
                elif kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    self._refuse("it does not speak CURVE with us")
                elif kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                    broken += 1
                    if broken == _BROKEN_HANDSHAKES:
                        self._refuse("it broke the handshake off: its key is not the expected one")
        finally:
            monitor.close()

    def _refuse(self, why: str) -> None:
        if not self._refused.done():
            self._refused.set_result(why)

    async def _connected(self) -> None:
        """Wait for the connection.

        :raise ExecutionFailed: `agent-keys`.
        """
        if self._up.is_set():
            return
        up = asyncio.ensure_future(self._up.wait())
        try:
            await asyncio.wait((up, self._refused), return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
        if self._up.is_set():
            return
        why = self._refused.result()
        self._refused = asyncio.get_running_loop().create_future()  # keys may be set right
        raise ExecutionFailed(
            Slug.AGENT_KEYS,
            f"The agent of {self.guest} at {self._endpoint} refuses: {why}.",
            untouched="the guest and its jobs",
            hint="compare 'kawarimi keys show' on both sides",
            scope=Scope.GUEST,
        )

    async def _listen(self) -> None:
        """Hand answers to who waits for them; one that nobody waits for is late, and dropped."""
        while True:
            frames = await self._socket.recv_multipart()
            try:
                answer = msgspec.json.decode(frames[-1], type=Answer)
            except (msgspec.DecodeError, ValueError) as error:
                log.warning("%s: not an answer: %s", self.guest, error)
                continue
            waiting = self._waiting.get(answer.number)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)

    def _give_up(self, why: str) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(self._unknown(why))

    async def _exchange(
        self, request: Ask, ends: float, operation: str = "", phase: str = "", attempt: int = 0
    ) -> Answer:
        """Send one request, and wait for its answer until a moment of the loop's clock."""
        number = next(self._numbers)
        message = msgspec.json.encode(Envelope(number, request, operation, phase, attempt))
        try:
            async with asyncio.timeout_at(ends):
                waiting = await self._send(number, message)
        except TimeoutError as error:
            self._forget(number)
            raise self._unreachable() from error
        try:
            async with asyncio.timeout_at(ends):
                return await waiting
        except TimeoutError as error:
            raise self._unknown("it did not answer in time") from error
        finally:
            self._forget(number)

    async def _send(self, number: int, message: bytes) -> asyncio.Future[Answer]:
        """Send a message as soon as there is a connection; return what will hold its answer."""
        while True:
            await self._connected()
            waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._waiting[number] = waiting
            sending = asyncio.ensure_future(self._socket.send(message))
            try:
                await asyncio.wait((sending, waiting), return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    return waiting
            finally:
                sending.cancel()
            self._forget(number)  # the connection broke before the message was in it: once more

    def _forget(self, number: int) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None and waiting.done() and not waiting.cancelled():
            waiting.exception()  # seen, should nobody have come to it

    async def _greet(self, ends: float) -> None:
        """Say hello.

        :raise PreflightRefused: `agent-version`, or `unknown-guest` if it is another guest.
        """
        hello = (await self._exchange(AskHello(VERSION), ends)).result(Hello)
        if hello.version != VERSION:
            raise PreflightRefused(
                Slug.AGENT_VERSION,
                f"The agent of {self.guest} (kawarimi {hello.software}) speaks version "
                f"{hello.version} of the protocol, not {VERSION}.",
                untouched="the guest and its jobs",
                hint="install the same version of kawarimi on the host and in the guest",
                scope=Scope.GUEST,
            )
        if hello.guest != self.guest:
            raise PreflightRefused(
                Slug.UNKNOWN_GUEST,
                f"The agent at {self._endpoint} is that of {hello.guest!r}, not of {self.guest!r}.",
                untouched="the guest and its jobs",
                hint="correct the endpoint, or the guest's name in its agent.toml",
                scope=Scope.GUEST,
            )
        self.hello = hello

    def _unreachable(self) -> ExecutionFailed:
        return ExecutionFailed(
            Slug.AGENT_UNREACHABLE,
            f"No agent of {self.guest} answers at {self._endpoint}.",
            untouched="the guest and its jobs",
            hint="look whether the guest runs, and 'kawarimi agent' in it",
            scope=Scope.GUEST,
        )

    def _unknown(self, why: str) -> OutcomeUnknown:
        return OutcomeUnknown(
            Slug.AGENT_UNREACHABLE,
            f"The agent of {self.guest} was asked, and {why}.",
            hint="ask it again how things stand",
            scope=Scope.GUEST,
        )

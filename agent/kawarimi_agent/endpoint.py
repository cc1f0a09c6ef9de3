"""The agent's ZeroMQ endpoint: where bridges ask.

A ROUTER socket with CURVE; only bridges whose public key lies in the configured folder get in. The
folder is read at every handshake, so that a key can be added or withdrawn without a restart.
ZeroMQ would let everybody in where nobody answers its question who may: the socket enforces its
ZAP domain, which turns that into a refusal.

A bridge's requests count as root's. They are acted on side by side, each within its own deadline.
A guest that migrates stands still for a moment; nothing here minds: there are no heartbeats whose
absence would close a connection, and TCP's own keep-alive gives up only after a minute and a half.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Coroutine
from pathlib import Path

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from kawarimi_agent.desk import Desk, encode
from kawarimi_agent.settings import Settings
from kawarimi_wire.errors import ExecutionFailed, KawarimiError, Scope, Slug, UsageError
from kawarimi_wire.keys import PUBLIC, load_pair, load_public
from kawarimi_wire.messages import MAX_MESSAGE, VERSION, Answer, AskHello, Envelope, Failure

log = logging.getLogger(__name__)

DOMAIN = "kawarimi"

MAX_CONNECTIONS = 256
"""How many connections' hellos are remembered; one that was forgotten is told to say it again."""

MAX_UNDER_WAY = 512
"""How many requests are acted on at a time; more are left in the socket."""

KEEPALIVE_S = (30, 10, 6)
"""TCP's keep-alive: after how long, how often, how many times."""

_ROOT = 0


class _Admitted:
    """Answers ZeroMQ's question whether a public key may come in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def callback(self, domain: str, key: bytes) -> bool:
        """Say whether a public key (as Z85 text) is that of a bridge."""
        for file in self._folder.glob(f"*{PUBLIC}"):
            try:
                if load_public(file) == key:
                    return True
            except UsageError as error:
                log.warning("%s", error.what)
        log.warning("refused a connection with a public key that is not admitted")
        return False


class Endpoint:
    """Hands requests from bridges to the desk.

    :raise UsageError: `bad-configuration`: the keys cannot be used.
    """

    def __init__(self, settings: Settings, desk: Desk) -> None:
        self.listen = settings.listen
        self._desk = desk
        self._settings = settings
        self._context = zmq.asyncio.Context()
        self._greeted: OrderedDict[bytes, None] = OrderedDict()
        self._room = asyncio.Semaphore(MAX_UNDER_WAY)
        self._tasks: set[asyncio.Task[None]] = set()
        self._authenticator: AsyncioAuthenticator | None = None
        self._socket: zmq.asyncio.Socket | None = None

    async def start(self) -> None:
        """Begin to listen; `listen` then has the real port where a `*` was asked for.

        :raise UsageError: `bad-configuration`: the keys cannot be used.
        :raise ExecutionFailed: `agent-cannot-listen`.
        """
        socket = self._context.socket(zmq.ROUTER)
        socket.linger = 0
        socket.maxmsgsize = MAX_MESSAGE
        socket.ipv6 = "[" in self.listen
        idle, interval, count = KEEPALIVE_S
        socket.tcp_keepalive = 1
        socket.tcp_keepalive_idle = idle
        socket.tcp_keepalive_intvl = interval
        socket.tcp_keepalive_cnt = count
        try:
            if self._settings.insecure:
                log.warning("--insecure: every user of this machine may do what a bridge may")
            else:
                self._secure(socket)
            socket.bind(self.listen)
        except KawarimiError:
            self._release(socket)
            raise
        except zmq.ZMQError as error:
            self._release(socket)
            raise ExecutionFailed(
                Slug.AGENT_CANNOT_LISTEN,
                f"the agent cannot listen at {self.listen}: {error.strerror}",
                untouched="every job",
                hint="correct 'listen', or end what uses the address",
                scope=Scope.GUEST,
            ) from error
        self.listen = str(socket.get_string(zmq.LAST_ENDPOINT))
        self._socket = socket
        self._spawn(self._serve(socket))

    def _secure(self, socket: zmq.asyncio.Socket) -> None:
        assert self._settings.secret_key is not None
        assert self._settings.bridges is not None
        own = load_pair(self._settings.secret_key)
        self._authenticator = AsyncioAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(
            domain=DOMAIN, credentials_provider=_Admitted(self._settings.bridges)
        )
        socket.zap_domain = DOMAIN.encode()
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.curve_server = True
        socket.curve_publickey = own.public
        socket.curve_secretkey = own.secret

    async def stop(self) -> None:
        """Stop listening; what is under way is cancelled. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._release(self._socket)
            self._socket = None

    def _release(self, socket: zmq.asyncio.Socket) -> None:
        socket.close()
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._context.term()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            await self._room.acquire()
            peer, *frames = await socket.recv_multipart()
            self._spawn(self._handle(socket, peer, frames))

    async def _handle(self, socket: zmq.asyncio.Socket, peer: bytes, frames: list[bytes]) -> None:
        try:
            answer = await self._answer(peer, frames[0] if len(frames) == 1 else b"")
            # A bridge that is gone, or reads nothing, misses its answer: nobody here waits for it.
            with contextlib.suppress(zmq.ZMQError):
                await socket.send_multipart([peer, answer], zmq.NOBLOCK)
        finally:
            self._room.release()

    async def _answer(self, peer: bytes, message: bytes) -> bytes:
        request = self._desk.read(message)
        if not isinstance(request, Envelope):
            return encode(request)
        if isinstance(request.body, AskHello):
            return await self._greet(peer, request)
        if peer not in self._greeted:
            refusal = UsageError(
                Slug.AGENT_VERSION,
                "the first request of a connection says which version it speaks",
                untouched="the guest",
                hint="send a hello, then ask again",
                scope=Scope.GUEST,
            )
            return encode(Answer(request.number, failure=Failure.of(refusal)))
        return await self._desk.answer(request, _ROOT)

    async def _greet(self, peer: bytes, request: Envelope) -> bytes:
        answer = await self._desk.answer(request, _ROOT)
        if request.body == AskHello(VERSION):
            self._greeted[peer] = None
            if len(self._greeted) > MAX_CONNECTIONS:
                self._greeted.popitem(last=False)
        return answer

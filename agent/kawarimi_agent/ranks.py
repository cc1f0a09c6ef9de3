"""The socket on which the ranks of this machine dial in.

A rank is whatever said a well-formed hello over it, from the process that it claims to be. One
`Rank` stands for one connection: when it breaks, the object is gone for good, and what was under
way on it ends with `RankGone`; the rank dials again by itself, with a new hello.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Protocol

from kawarimi_ompi.protocol import (
    MAX_MESSAGE,
    Command,
    Goodbye,
    Hello,
    MalformedError,
    Reply,
    State,
    decode,
    encode_command,
    encode_welcome,
)

log = logging.getLogger(__name__)

HELLO_DEADLINE_S = 5.0
"""A connection that has not said hello by then is closed."""

MAX_CONNECTIONS = 4096


class RankGoneError(Exception):
    """The connection to a rank broke before it answered; whether it acted is unknown."""


class RankSilentError(Exception):
    """A rank did not answer by the deadline; whether it acted, or will act, is unknown."""


class SwitchableRank(Protocol):
    """One rank, on this machine or behind another agent.

    :ivar hello: what it said when it dialled; `state` and `epoch` are those of its last reply.
    """

    hello: Hello
    state: State
    epoch: int

    @property
    def name(self) -> str:
        """The rank's name within its job, for people."""

    async def call(self, command: Command) -> Reply:
        """Send one command and wait for its reply; see `Rank.call`."""


class Rank:
    """One connected rank, a `SwitchableRank`.

    :ivar hello: what it said when it dialled; `state` and `epoch` below are newer.
    :ivar uid: its user, by the kernel's word.
    """

    def __init__(self, connection: socket.socket, hello: Hello, uid: int) -> None:
        self.hello = hello
        self.uid = uid
        self.state = hello.state
        self.epoch = hello.epoch
        self._socket = connection
        self._sequence = 0
        self._waiting: dict[int, asyncio.Future[Reply]] = {}

    @property
    def name(self) -> str:
        """The rank's name within its job, for people."""
        return f"rank {self.hello.vpid}"

    async def call(self, command: Command) -> Reply:
        """Send one command and wait for its reply; the last one if it took several messages.

        :raise RankGoneError: the connection broke.
        :raise RankSilentError: no reply by the deadline.
        """
        messages = encode_command(self._sequence + 1, command)
        loop = asyncio.get_running_loop()
        numbers = range(self._sequence + 1, self._sequence + 1 + len(messages))
        self._sequence += len(messages)
        futures = [self._waiting.setdefault(n, loop.create_future()) for n in numbers]
        try:
            async with asyncio.timeout(command.deadline_s):
                for message in messages:
                    await loop.sock_sendall(self._socket, message)
                replies = [await future for future in futures]
        except TimeoutError:
            raise RankSilentError(self.name) from None
        except OSError as error:
            raise RankGoneError(self.name) from error
        finally:
            for number in numbers:
                self._waiting.pop(number, None)
        failed = [reply for reply in replies if reply.outcome]
        return failed[0] if failed else replies[-1]

    def take(self, reply: Reply) -> None:
        """Hand a reply to whoever waits for it. One that nobody waits for is late, and dropped."""
        if reply.state is not None:
            self.state = reply.state
            self.epoch = reply.epoch
        waiting = self._waiting.get(reply.sequence)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)

    def gone(self) -> None:
        """End everything under way with `RankGoneError`."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(RankGoneError(self.name))


class RankServer:
    """Listens for ranks, and keeps the list of those connected.

    :ivar ranks: the ranks that said hello and are connected now.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ranks: set[Rank] = set()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    async def start(self) -> None:
        """Begin to listen. Every user's ranks may dial; what they may do is decided by their uid.

        :raise OSError: the socket cannot be made; nothing is left behind.
        """
        self.path.unlink(missing_ok=True)
        listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            listener.bind(str(self.path))
            self.path.chmod(0o666)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._spawn(self._accept(listener))

    async def stop(self) -> None:
        """Stop listening and hang up; the ranks go on, and dial again. Idempotent."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self.path.unlink(missing_ok=True)

    async def wait(self, ready: Callable[[], bool], deadline_s: float) -> bool:
        """Wait until `ready` holds, looking whenever a rank comes, goes or answers."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while not ready():
                    self._changed.clear()
                    await self._changed.wait()
        return ready()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            if len(self._tasks) > MAX_CONNECTIONS:
                connection.close()
                continue
            self._spawn(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            rank = await self._greet(connection)
            if rank is None:
                return
            self.ranks.add(rank)
            self._changed.set()
            try:
                await self._listen(connection, rank)
            except (OSError, MalformedError) as error:
                log.warning("%s: %s", rank.name, error)
            finally:
                self.ranks.discard(rank)
                rank.gone()
                self._changed.set()

    async def _greet(self, connection: socket.socket) -> Rank | None:
        """Take the hello. None, with the reason told to the peer, if it is not acceptable."""
        loop = asyncio.get_running_loop()
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", raw)
        try:
            async with asyncio.timeout(HELLO_DEADLINE_S):
                hello = decode(await loop.sock_recv(connection, MAX_MESSAGE + 1))
            reason = self._why_not(hello, pid, uid)
            welcome = encode_welcome(accepted=not reason, reason=reason)
            await loop.sock_sendall(connection, welcome)
        except (TimeoutError, OSError, MalformedError) as error:
            log.warning("process %d of user %d: no hello: %s", pid, uid, error)
            return None
        if reason:
            log.warning("process %d of user %d: hello refused: %s", pid, uid, reason)
            return None
        assert isinstance(hello, Hello)
        return Rank(connection, hello, uid)

    def _why_not(self, hello: object, pid: int, uid: int) -> str:
        if not isinstance(hello, Hello):
            return "the first message is not a hello"
        if hello.pid != pid:
            return "the hello names another process"
        for other in self.ranks:
            if other.hello.jobid != hello.jobid:
                continue
            if other.uid != uid:
                return "the job belongs to another user"
            # The same process may dial again before its old connection is seen to be broken.
            if (
                other.hello.vpid == hello.vpid
                and other.hello.pid != hello.pid
                and _alive(other.hello.pid, other.uid)
            ):
                return "this rank is another process, which is connected"
        return ""

    async def _listen(self, connection: socket.socket, rank: Rank) -> None:
        loop = asyncio.get_running_loop()
        while packet := await loop.sock_recv(connection, MAX_MESSAGE + 1):
            message = decode(packet)
            if isinstance(message, Goodbye):
                return
            if not isinstance(message, Reply):
                raise MalformedError("a second hello")
            rank.take(message)
            self._changed.set()


def _alive(pid: int, uid: int) -> bool:
    """Whether this process still exists and is still this user's."""
    try:
        return os.stat(f"/proc/{pid}").st_uid == uid
    except FileNotFoundError:
        return False

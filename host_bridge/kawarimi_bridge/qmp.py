"""A QEMU monitor: bounded commands, events that can be waited for, and a transcript.

On top of qemu.qmp, which speaks the protocol. What is added is what a migration needs: no wait
without a bound, a wait for an event that ends when QEMU dies (qemu.qmp's listener stays silent
then), and every word said, in order, in a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, Runstate
from qemu.qmp.events import EventListener
from qemu.qmp.message import Message

from kawarimi_wire.errors import ExecutionFailed, OutcomeUnknown, Scope, Slug

Event = Mapping[str, Any]

# What qemu.qmp logs, we raise; without a handler, Python would print it too.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())

COMMAND_DEADLINE_S = 20.0
"""QEMU answers a command in milliseconds, unless its main loop is held: a starved machine, a guest
under emulation that shares two cores."""


class Monitor:
    """A connection to one QEMU's QMP monitor.

    Made by `Monitor.connect`; `close` it. Every method may raise `ExecutionFailed` with the slug
    `qemu-gone` once QEMU has closed the connection; the monitor is of no use from then on.
    """

    def __init__(self, client: QMPClient, name: str, transcript: Path | None) -> None:
        self.name = name
        self._client = client
        self._transcript = transcript.open("ab") if transcript else None
        self._gone = asyncio.Event()
        self._everything = EventListener()
        self._seen: dict[str, float] = {}
        client.register_listener(self._everything)
        self._tasks = [
            asyncio.create_task(self._note_events(), name=f"qmp-events-{name}"),
            asyncio.create_task(self._note_end(), name=f"qmp-end-{name}"),
        ]

    @classmethod
    async def connect(
        cls, path: Path, *, name: str, deadline_s: float, transcript: Path | None = None
    ) -> Monitor:
        """Connect to a monitor's unix socket.

        :param deadline_s: seconds for the connection and QMP's greeting. A QEMU accepts one
            monitor connection at a time on a socket; a second one waits here.
        :param transcript: a file that is appended with one JSON line per command, reply and event.
        :raise ExecutionFailed: `qmp-unreachable`.
        """
        client = QMPClient(name)
        try:
            await asyncio.wait_for(client.connect(str(path)), deadline_s)
        except (ConnectError, TimeoutError, AssertionError) as error:
            # qemu.qmp asserts that the session still runs when it is made: not so if QEMU ends.
            raise ExecutionFailed(
                Slug.QMP_UNREACHABLE,
                f"The monitor of {name} at {path} did not answer in {deadline_s:.0f} s.",
                untouched="the guest",
                hint="is QEMU running, and does nobody else hold its monitor socket?",
                scope=Scope.GUEST,
                facts={"socket": str(path), "cause": str(error) or type(error).__name__},
            ) from error
        return cls(client, name, transcript)

    async def close(self) -> None:
        """Close the connection; QEMU runs on. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Exception):  # the reason why the connection had ended
            await asyncio.wait_for(self._client.disconnect(), COMMAND_DEADLINE_S)
        if self._transcript:
            self._transcript.close()
            self._transcript = None

    @property
    def gone(self) -> bool:
        """Whether QEMU has closed the connection."""
        return self._gone.is_set()

    def seen(self, event: str) -> float | None:
        """Return when an event of this name came last, by the monotonic clock; None if none did."""
        return self._seen.get(event)

    async def wait_gone(self, deadline_s: float) -> bool:
        """Wait until QEMU has closed the connection; False if it has not in time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), deadline_s)
        return self.gone

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        deadline_s: float = COMMAND_DEADLINE_S,
    ) -> Any:
        """Run a QMP command and return what it returns.

        :raise ExecutionFailed: `qmp-refused` with QEMU's own words, nothing has changed then;
            `qemu-gone`.
        :raise OutcomeUnknown: `qmp-timeout`: QEMU may or may not have done it.
        """
        self._note("command", {"execute": command, "arguments": dict(arguments or {})})
        try:
            reply = await asyncio.wait_for(
                self._client.execute(command, dict(arguments) if arguments else None), deadline_s
            )
        except ExecuteError as error:
            self._note("error", {"class": error.error_class, "desc": str(error)})
            raise ExecutionFailed(
                Slug.QMP_REFUSED,
                f"{self.name} refused {command}: {error}",
                scope=Scope.GUEST,
                facts={"command": command, "class": error.error_class, "said": str(error)},
            ) from error
        except TimeoutError:
            raise OutcomeUnknown(
                Slug.QMP_TIMEOUT,
                f"{self.name} did not answer {command} in {deadline_s:.0f} s.",
                hint="ask for its state before anything else is done",
                scope=Scope.GUEST,
                facts={"command": command},
            ) from None
        except (ExecInterruptedError, ConnectError, EOFError, OSError) as error:
            self._gone.set()
            raise self._gone_error(f"while it was asked to {command}") from error
        except Exception as error:
            # qemu.qmp raises StateError where the connection had ended before the call.
            if self._client.runstate is Runstate.RUNNING:
                raise
            self._gone.set()
            raise self._gone_error(f"before it could be asked to {command}") from error
        self._note("reply", reply)
        return reply

    @contextlib.asynccontextmanager
    async def watch(self, names: Iterable[str]) -> AsyncIterator[EventWatch]:
        """Collect events of these names from now on.

        Enter this before the command that causes the event, so that the event cannot be missed.
        """
        with self._client.listener(list(names)) as listener:
            yield EventWatch(self, listener)

    async def _race_gone(self, listener: EventListener, deadline_s: float) -> Message | None:
        """Return the next event, None at the deadline; raise once QEMU is gone."""
        event = asyncio.ensure_future(listener.get())
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait({event, gone}, timeout=deadline_s, return_when="FIRST_COMPLETED")
            if event.done():
                return event.result()
            if gone.done():
                raise self._gone_error("while an event was waited for")
            return None
        finally:
            event.cancel()
            gone.cancel()

    def _gone_error(self, when: str) -> ExecutionFailed:
        return ExecutionFailed(
            Slug.QEMU_GONE,
            f"The QEMU of {self.name} ended {when}.",
            hint="see its log",
            scope=Scope.GUEST,
        )

    async def _note_events(self) -> None:
        async for event in self._everything:
            self._seen[str(event["event"])] = time.monotonic()
            self._note("event", dict(event))

    async def _note_end(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        self._gone.set()

    def _note(self, kind: str, content: object) -> None:
        if self._transcript:
            line = {"monotonic_s": round(time.monotonic(), 6), "monitor": self.name, kind: content}
            self._transcript.write(msgspec.json.encode(line) + b"\n")
            self._transcript.flush()


class EventWatch:
    """Events of some names since `Monitor.watch` was entered, in order."""

    def __init__(self, monitor: Monitor, listener: EventListener) -> None:
        self._monitor = monitor
        self._listener = listener

    async def wait(self, deadline_s: float, accept: Callable[[Event], bool]) -> Event | None:
        """Return the first event that is accepted; None if there is none in time.

        :raise ExecutionFailed: `qemu-gone`.
        """
        give_up = time.monotonic() + deadline_s
        while (left := give_up - time.monotonic()) > 0:
            event = await self._monitor._race_gone(self._listener, left)
            if event is not None and accept(event):
                return event
        return None

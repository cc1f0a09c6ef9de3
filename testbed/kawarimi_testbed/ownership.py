"""Claim a testbed's folder, start its keeper, talk to it, and sweep up after a killed one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from kawarimi_testbed import network
from kawarimi_testbed.keeper import (
    DESCRIPTION,
    SOCKET,
    Description,
    Down,
    Processes,
    Reply,
    Request,
    read_description,
)
from kawarimi_testbed.paths import run_dir
from kawarimi_wire.errors import (
    ExecutionFailed,
    KawarimiError,
    OutcomeUnknown,
    PreflightRefused,
    Slug,
)

_START_DEADLINE_S = 30.0
_REQUEST_DEADLINE_S = 20.0
_DOWN_DEADLINE_S = 30.0


class KeeperClient:
    """A connection to a testbed's keeper; one request at a time."""

    def __init__(
        self,
        folder: Path,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        process: subprocess.Popen[bytes] | None,
    ) -> None:
        self.folder = folder
        self._reader, self._writer = streams
        self._process = process
        self._lock = asyncio.Lock()

    @classmethod
    async def start(
        cls, description: Description, *, deadline_s: float = _START_DEADLINE_S
    ) -> KeeperClient:
        """Claim the testbed's folder and start a keeper.

        The keeper takes the testbed down as soon as this process has ended, however that came
        about, unless it was released (`keeper.Release`).

        :param deadline_s: seconds for the keeper to make the network.
        :raise PreflightRefused: `testbed-exists` or `namespace-in-use`; nothing was made.
        :raise ExecutionFailed: `testbed-start-failed`; nothing is left.
        """
        folder = run_dir(description.topology.name)
        lock = _claim(folder)
        try:
            (folder / DESCRIPTION).write_bytes(msgspec.json.encode(description))
            with (Path(description.logs) / "keeper.log").open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "kawarimi_testbed.keeper", str(folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    pass_fds=[lock],
                    start_new_session=True,
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(lock)  # the keeper has it now
        try:
            await _await_ready(process, deadline_s)
            client = await cls.connect(folder)
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, _DOWN_DEADLINE_S)
            raise
        client._process = process
        return client

    @classmethod
    async def connect(cls, folder: Path) -> KeeperClient:
        """Connect to a running testbed's keeper.

        :raise ExecutionFailed: `testbed-not-running`.
        """
        try:
            streams = await asyncio.wait_for(
                asyncio.open_unix_connection(folder / SOCKET), _REQUEST_DEADLINE_S
            )
        except (OSError, TimeoutError) as error:
            raise ExecutionFailed(
                Slug.TESTBED_NOT_RUNNING,
                f"The testbed {folder.name!r} does not run.",
                hint="start it with 'kawarimi testbed up'",
            ) from error
        return cls(folder, streams, None)

    async def request(self, request: Request, deadline_s: float = _REQUEST_DEADLINE_S) -> Reply:
        """Ask the keeper, and return its answer.

        :raise ExecutionFailed: what the keeper answered; `testbed-not-running` if it has gone.
        :raise OutcomeUnknown: `command-timeout`.
        """
        async with self._lock:
            try:
                self._writer.write(msgspec.json.encode(request) + b"\n")
                line = await asyncio.wait_for(self._reader.readline(), deadline_s)
            except TimeoutError:
                raise OutcomeUnknown(
                    Slug.COMMAND_TIMEOUT,
                    f"The keeper of {self.folder.name!r} did not answer in {deadline_s:.0f} s.",
                ) from None
            except OSError:
                line = b""
        if not line:
            raise ExecutionFailed(
                Slug.TESTBED_NOT_RUNNING, f"The testbed {self.folder.name!r} has ended."
            )
        reply = msgspec.json.decode(line, type=Reply)
        if reply.error is not None:
            raise _as_error(reply.error)
        return reply

    async def processes(self) -> dict[str, int]:
        """Return the running processes and their ids."""
        return (await self.request(Processes())).processes

    async def down(self) -> None:
        """Take the testbed down; nothing of it is left when this returns.

        :raise OutcomeUnknown: `command-timeout` if the keeper takes too long.
        """
        with contextlib.suppress(FileNotFoundError):  # it has gone down by itself
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with contextlib.suppress(ExecutionFailed):  # it is going down already
                    await self.request(Down())
                await _wait_unlocked(folder, self.folder.name)
            finally:
                os.close(folder)
        self._writer.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait, _DOWN_DEADLINE_S)
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()


async def _await_ready(process: subprocess.Popen[bytes], deadline_s: float) -> None:
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), deadline_s)
    except TimeoutError:
        raise ExecutionFailed(
            Slug.TESTBED_START_FAILED, f"The keeper was not ready in {deadline_s:.0f} s."
        ) from None
    if not line:
        raise ExecutionFailed(
            Slug.TESTBED_START_FAILED, "The keeper ended at once.", hint="see keeper.log"
        )
    reply = msgspec.json.decode(line, type=Reply)
    if reply.error is not None:
        raise _as_error(reply.error)


def _as_error(fields: dict[str, object]) -> KawarimiError:
    """Return an error that was raised in the keeper, with its class and fields."""
    kind = (
        PreflightRefused if fields["exit_code"] == PreflightRefused.exit_code else ExecutionFailed
    )
    facts = fields["facts"]
    assert isinstance(facts, dict)
    return kind(
        Slug(str(fields["slug"])),
        str(fields["what"]),
        untouched=str(fields["untouched"]),
        hint=str(fields["hint"]),
        facts=facts,
    )


def _claim(folder: Path) -> int:
    """Make the folder and return its lock, after sweeping up what a killed keeper left there.

    :raise PreflightRefused: `testbed-exists`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise PreflightRefused(
            Slug.TESTBED_EXISTS,
            f"The testbed {folder.name!r} is running.",
            untouched="it was left alone",
            hint=f"use it, end it with 'kawarimi testbed down --name {folder.name}', "
            "or choose another --name",
        ) from None
    lock = _try_lock(folder)
    assert lock is not None, "the folder was made by us just now"
    return lock


def sweep(folder: Path) -> bool:
    """Remove what a killed keeper left of a testbed; return whether there was anything."""
    lock = _try_lock(folder)
    if lock is None:
        return False
    try:
        with contextlib.suppress(ExecutionFailed):  # killed before it wrote what it is
            network.delete(read_description(folder).topology)
        shutil.rmtree(folder)
    finally:
        os.close(lock)
    return True


def is_running(folder: Path) -> bool:
    """Return whether a testbed's keeper lives."""
    if not folder.exists():
        return False
    lock = _try_lock(folder)
    if lock is None:
        return True
    os.close(lock)
    return False


def _try_lock(folder: Path) -> int | None:
    """Return a locked descriptor of a folder, or None if it is locked or not there."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


async def _wait_unlocked(folder: int, name: str) -> None:
    """Wait until the keeper has ended, which is when it no longer holds the folder's lock."""

    async def locked() -> None:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            await asyncio.sleep(0.02)  # a lock has no event to wait for

    try:
        await asyncio.wait_for(locked(), _DOWN_DEADLINE_S)
    except TimeoutError:
        raise OutcomeUnknown(
            Slug.COMMAND_TIMEOUT,
            f"The testbed {name!r} has not gone down in {_DOWN_DEADLINE_S:.0f} s.",
            hint="see keeper.log; run 'kawarimi testbed down' again",
        ) from None

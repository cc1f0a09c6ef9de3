"""The process that owns a testbed: its namespaces and its QEMUs live and die with it.

One keeper per testbed. It makes the network, starts QEMUs on request, and takes everything down
when it is told to, when a signal asks it to, or when its owner goes away before releasing it: the
owner holds the other end of the keeper's standard input, so that even a killed owner (SIGKILL)
is noticed. Should the keeper itself be killed, the kernel kills its QEMUs (PR_SET_PDEATHSIG), and
the next command that meets the testbed's folder removes the rest.

The keeper holds a lock on the testbed's folder for as long as it lives; the folder without a lock
is what a killed keeper left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

import msgspec

from kawarimi_testbed import network
from kawarimi_testbed.topology import Topology
from kawarimi_wire.errors import ExecutionFailed, KawarimiError, Slug

DESCRIPTION = "testbed.json"
SOCKET = "keeper.sock"
_TERM_GRACE_S = 3.0
_MAX_LINE = 1 << 20


class Description(msgspec.Struct, frozen=True):
    """What a running testbed is: read by every command that meets its folder."""

    topology: Topology
    logs: str
    image: str


class Spawn(msgspec.Struct, frozen=True, tag="spawn"):
    """Start a process on a host, after making the taps that it needs."""

    name: str
    host: str
    argv: list[str]
    log: str
    taps: dict[str, str]
    """Tap → network."""


class Kill(msgspec.Struct, frozen=True, tag="kill"):
    """End a process; done when it has ended."""

    name: str


class Processes(msgspec.Struct, frozen=True, tag="processes"):
    """Ask which processes run."""


class Release(msgspec.Struct, frozen=True, tag="release"):
    """Let the testbed outlive its owner, until somebody asks for its end."""


class Down(msgspec.Struct, frozen=True, tag="down"):
    """Take the testbed down; the connection closes when that is done."""


Request = Spawn | Kill | Processes | Release | Down


class Reply(msgspec.Struct, frozen=True):
    """The answer: either an error, or the processes that run now, by name."""

    error: dict[str, object] | None = None
    processes: dict[str, int] = {}


class Keeper:
    """The state of one keeper."""

    def __init__(self, folder: Path, description: Description) -> None:
        self._folder = folder
        self._topology = description.topology
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Make the network, serve, and take everything down.

        Says on standard output, in one line of JSON, that it is ready, or why it is not.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        os.set_blocking(0, False)
        loop.add_reader(0, self._owner_said)
        # The folder goes here, while the signals are handled: one that came later would end this
        # process before it has cleaned up.
        try:
            await self._own_network()
        except KawarimiError as error:
            _say(Reply(error=error.as_dict()))
        finally:
            shutil.rmtree(self._folder)

    async def _own_network(self) -> None:
        """Make the network, serve until the end, delete it.

        :raise KawarimiError: it could not be made; nothing of it is left.
        """
        network.refuse_foreign_namespaces(self._topology)
        # From here on, namespaces of these names are ours to delete.
        try:
            network.create(self._topology)
            server = await asyncio.start_unix_server(
                self._serve, self._folder / SOCKET, limit=_MAX_LINE
            )
            _say(Reply())
            await self._stop.wait()
            server.close()
        finally:
            await asyncio.gather(*(self._end(process) for process in self._processes.values()))
            network.delete(self._topology)

    def _owner_said(self) -> None:
        if os.read(0, 4096) == b"":
            self._stop.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = msgspec.json.Decoder(Request)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                try:
                    reply = await self._answer(decoder.decode(line))
                except KawarimiError as error:
                    reply = Reply(error=error.as_dict())
                writer.write(msgspec.json.encode(reply) + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, request: Request) -> Reply:
        match request:
            case Spawn():
                await self._spawn(request)
            case Kill(name=name):
                if name in self._processes:
                    await self._end(self._processes[name])
            case Processes():
                pass
            case Release():
                asyncio.get_running_loop().remove_reader(0)
            case Down():
                self._stop.set()
        return Reply(
            processes={
                name: process.pid
                for name, process in self._processes.items()
                if process.returncode is None
            }
        )

    async def _spawn(self, request: Spawn) -> None:
        for tap, bridge in request.taps.items():
            network.add_tap(self._topology, request.host, tap, bridge)
        # setpriv and `ip netns exec` replace themselves: the child is QEMU itself, and keeps the
        # death signal that setpriv set, which names this process as the parent.
        wrapper = ["setpriv", "--pdeathsig", "KILL", "--"]
        wrapper += ["ip", "netns", "exec", self._topology.namespace(request.host)]
        with Path(request.log).open("ab") as log:
            self._processes[request.name] = await asyncio.create_subprocess_exec(
                *wrapper,
                *request.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _TERM_GRACE_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _say(reply: Reply) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
        sys.stdout.buffer.flush()


def read_description(folder: Path) -> Description:
    """Return what a testbed's folder says it is.

    :raise ExecutionFailed: `testbed-not-running` if it says nothing.
    """
    try:
        return msgspec.json.decode((folder / DESCRIPTION).read_bytes(), type=Description)
    except (OSError, msgspec.DecodeError, KawarimiError) as error:
        raise ExecutionFailed(
            Slug.TESTBED_NOT_RUNNING,
            f"There is no testbed {folder.name!r}.",
            untouched="nothing was begun",
            hint="start it with 'kawarimi testbed up'",
        ) from error


def main() -> None:
    """Run as `python -m kawarimi_testbed.keeper FOLDER`."""
    folder = Path(sys.argv[1])
    keeper = Keeper(folder, read_description(folder))
    asyncio.run(keeper.run())


if __name__ == "__main__":
    main()

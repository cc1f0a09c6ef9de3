"""Probes: real queue pairs between guests, each end a child process of the agent."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import secrets
import sys

import msgspec

from kawarimi_agent.probe import Job, Peer, Said
from kawarimi_agent.sysfs import Sysfs
from kawarimi_wire.errors import ExecutionFailed, PreflightRefused, Scope, Slug, UsageError
from kawarimi_wire.messages import (
    AskProbeClose,
    AskProbeOpen,
    AskProbeRun,
    ProbeEnd,
    ProbeResult,
)

OPEN_DEADLINE_S = 20.0
"""How long a probe's process may take to start: an emulated guest imports pyverbs for seconds."""

MAX_PROBES = 64

_ANSWER_S = 2.0
"""How much longer than its deadline an exchange may take to say so."""


class _Probe:
    """A child process that is one end.

    :ivar end: what the peer needs to know.
    """

    def __init__(self, process: asyncio.subprocess.Process, end: ProbeEnd) -> None:
        self.end = end
        self.expiry: asyncio.TimerHandle | None = None
        self._process = process
        self._turn = asyncio.Lock()
        self._done: tuple[ProbeEnd, ProbeResult] | None = None

    @classmethod
    async def start(cls, job: Job) -> _Probe:
        """Start the process, and wait for its end of the probe.

        :raise ExecutionFailed: `fabric-unreachable`: the device cannot be used.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kawarimi_agent.probe", msgspec.json.encode(job).decode()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            said = await _said(process, OPEN_DEADLINE_S)
            if said.end is None:
                raise _unreachable(f"no probe on {job.device}: {said.error}")
            return cls(process, said.end)
        except BaseException:
            await _end(process)
            raise

    async def run(self, request: AskProbeRun) -> ProbeResult:
        """Exchange messages with the peer; once done, it stays done.

        :raise ExecutionFailed: `fabric-unreachable`.
        """
        async with self._turn:
            if self._done is not None and self._done[0] == request.peer:
                return self._done[1]
            assert self._process.stdin is not None
            peer = Peer(request.peer, request.deadline_s)
            self._process.stdin.write(msgspec.json.encode(peer) + b"\n")
            said = await _said(self._process, request.deadline_s + _ANSWER_S)
            if said.took_s is None:
                raise _unreachable(f"from {self.end.gid} to {request.peer.gid}: {said.error}")
            self._done = (request.peer, ProbeResult(said.took_s))
            return self._done[1]

    async def close(self) -> None:
        """End the process; it holds nothing any more."""
        if self.expiry is not None:
            self.expiry.cancel()
        await _end(self._process)


class Probes:
    """Answers what concerns probes."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs
        self._probes: dict[str, _Probe] = {}
        self._opening = 0
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, request: AskProbeOpen, uid: int) -> ProbeEnd:
        """Make one end; see `AskProbeOpen`.

        :raise UsageError: `unknown-device`, or `bad-usage`: the address is none.
        :raise PreflightRefused: `guest-busy`: there are too many probes.
        :raise ExecutionFailed: `hca-not-ready`: no GID; `fabric-unreachable`: no queue pair.
        """
        if len(self._probes) + self._opening >= MAX_PROBES:
            raise PreflightRefused(
                Slug.GUEST_BUSY,
                f"{MAX_PROBES} probes are open",
                untouched="the device",
                hint="close them, or wait until their lifetime is over",
                scope=Scope.GUEST,
            )
        index, gid = self._gid(request)
        name = secrets.token_hex(4)
        job = Job(name, request.device, gid, index, request.lifetime_s, os.getpid())
        self._opening += 1
        try:
            probe = await _Probe.start(job)
        finally:
            self._opening -= 1
        self._probes[name] = probe
        loop = asyncio.get_running_loop()
        probe.expiry = loop.call_later(request.lifetime_s, self._expire, name)
        return probe.end

    def _gid(self, request: AskProbeOpen) -> tuple[int, str]:
        if self._sysfs.device(request.device) is None:
            raise UsageError(
                Slug.UNKNOWN_DEVICE,
                f"the guest has no verbs device {request.device!r}",
                untouched="the guest",
                hint=f"it has: {', '.join(self._sysfs.names()) or 'none'}",
                scope=Scope.DEVICE,
            )
        try:
            address = str(ipaddress.ip_interface(request.address).ip) if request.address else ""
            gid = self._sysfs.gid(request.device, address)
        except ValueError as error:
            raise UsageError(Slug.BAD_USAGE, f"not an address: {error}") from error
        if gid is None:
            raise ExecutionFailed(
                Slug.HCA_NOT_READY,
                f"{request.device} has no GID of RoCE version 2 for {address}",
                untouched="the guest",
                hint="give its network interface the address first",
                scope=Scope.DEVICE,
            )
        return gid

    async def run(self, request: AskProbeRun, uid: int) -> ProbeResult:
        """Exchange messages; see `AskProbeRun`.

        :raise UsageError: `unknown-probe`: its lifetime is over, or it was closed.
        :raise ExecutionFailed: `fabric-unreachable`.
        """
        probe = self._probes.get(request.probe)
        if probe is None:
            raise UsageError(
                Slug.UNKNOWN_PROBE,
                f"there is no probe {request.probe!r}",
                untouched="the guest",
                hint="open one, with a longer lifetime",
                scope=Scope.GUEST,
            )
        return await probe.run(request)

    async def close(self, request: AskProbeClose, uid: int) -> None:
        """Give up an end; see `AskProbeClose`."""
        await self._close(request.probe)

    async def stop(self) -> None:
        """Close every probe. Idempotent."""
        await asyncio.gather(*(self._close(name) for name in list(self._probes)), *self._closing)

    async def _close(self, name: str) -> None:
        probe = self._probes.pop(name, None)
        if probe is not None:
            await probe.close()

    def _expire(self, name: str) -> None:
        task = asyncio.get_running_loop().create_task(self._close(name))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _said(process: asyncio.subprocess.Process, deadline_s: float) -> Said:
    """Read what a probe's process says; if it says nothing, why."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(deadline_s):
            line = await process.stdout.readline()
        return msgspec.json.decode(line, type=Said) if line else Said(error="the probe has ended")
    except TimeoutError:
        return Said(error=f"the probe says nothing for {deadline_s:g} s")
    except (msgspec.DecodeError, ValueError) as error:
        return Said(error=f"the probe says what it should not: {error}")


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _unreachable(what: str) -> ExecutionFailed:
    return ExecutionFailed(
        Slug.FABRIC_UNREACHABLE,
        what,
        untouched="the job runs on the fallback",
        hint="look at the port, the switch and the addresses of both guests",
        scope=Scope.DEVICE,
    )

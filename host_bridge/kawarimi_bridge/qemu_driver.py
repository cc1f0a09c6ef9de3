"""The hypervisor driver for plain QEMU: one monitor socket for each guest on each host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kawarimi_bridge import hca, migration
from kawarimi_bridge.config import Config
from kawarimi_bridge.migration import MigrationProgress, MigrationResult
from kawarimi_bridge.migration_parameters import MigrationParameters
from kawarimi_bridge.qmp import Monitor
from kawarimi_bridge.together import all_of
from kawarimi_wire.errors import (
    ExecutionFailed,
    KawarimiError,
    NeedsCleanup,
    PreflightRefused,
    Scope,
    Slug,
)

_CONNECT_DEADLINE_S = 5.0
_START_DEADLINE_S = 60.0
_COMMAND_DEADLINE_S = 20.0
_QUIT_DEADLINE_S = 20.0
_SOCKET_POLL_S = 0.02
_NOT_HERE = frozenset({"inmigrate", "postmigrate", "finish-migrate"})
"""States of a QEMU that does not run its guest: it has not come, or it has gone."""


class QemuDriver:
    """Implements `hypervisor.Hypervisor`.

    :param transcripts: a folder for what was said to each monitor; None for none.
    """

    def __init__(self, config: Config, transcripts: Path | None = None) -> None:
        self._config = config
        self._transcripts = transcripts
        self._monitors: dict[tuple[str, str], Monitor] = {}
        self._hosts: dict[str, str] = {}

    async def locate(self, guest: str) -> str:
        """Return the host whose QEMU runs the guest.

        :raise PreflightRefused: `qmp-unreachable` where no host has it.
        :raise NeedsCleanup: `split-brain-refused` where two hosts have it.
        """
        running = []
        for host in self._config.hosts:
            status = await self.status(guest, host)
            if status is not None and status not in _NOT_HERE:
                running.append(host)
        if not running:
            raise PreflightRefused(
                Slug.QMP_UNREACHABLE,
                f"No host has a QEMU that runs {guest}.",
                untouched="everything",
                hint="is it started, and is its monitor socket where the configuration says?",
                scope=Scope.GUEST,
                facts={"sockets": [str(self._socket(guest, host)) for host in self._config.hosts]},
            )
        if len(running) > 1:
            raise NeedsCleanup(
                Slug.SPLIT_BRAIN_REFUSED,
                f"{guest} runs on {' and '.join(running)} at the same time.",
                hint="end the one that is wrong, by hand",
                scope=Scope.GUEST,
            )
        self._hosts[guest] = running[0]
        return running[0]

    async def status(self, guest: str, host: str) -> str | None:
        """Return the run state of a guest's QEMU on a host; None where there is none."""
        try:
            monitor = await self._monitor(guest, host)
            return str((await monitor.execute("query-status"))["status"])
        except ExecutionFailed as error:
            if error.slug not in (Slug.QMP_UNREACHABLE, Slug.QEMU_GONE):
                raise
            # A socket that somebody else holds is no sign of a QEMU that has ended.
            if error.facts.get("cause") == TimeoutError.__name__:
                raise
            return None

    async def attached(self, guest: str) -> str | None:
        """Return the id of what is in the guest's HCA slots; None if they are empty."""
        monitor = await self._running(guest)
        for slot in self._slots(guest):
            inside = await hca.present(monitor, slot)
            if inside is not None:
                return inside
        return None

    async def check_destination(self, guests: Sequence[str], host: str) -> None:
        """Refuse a destination that cannot take the guests that come to it; nothing is touched.

        :raise PreflightRefused: `destination-too-small`; `hca-unusable` or `hca-slot-missing` for
            the HCA that a guest gets there; `migration-busy` where a QEMU of a guest is there
            already, or the guest is being migrated by somebody else.
        """
        await all_of(self._check_place(guest, host) for guest in guests)
        needed = sum(await all_of(self._memory(guest) for guest in guests))
        meminfo = await self._command(host, ["cat", "/proc/meminfo"], _COMMAND_DEADLINE_S)
        free = next(
            int(line.split()[1]) * 1024
            for line in meminfo.splitlines()
            if line.startswith("MemAvailable:")
        )
        if free < needed:
            raise PreflightRefused(
                Slug.DESTINATION_TOO_SMALL,
                f"{host} has {free >> 20} MiB of memory free, and {' and '.join(guests)} "
                f"{'have' if guests[1:] else 'has'} {needed >> 20} MiB.",
                untouched="every guest runs on",
                hint="choose another host" + (", or fewer guests for it" if guests[1:] else ""),
                scope=Scope.HOST,
            )

    async def start_destination(self, guest: str, host: str) -> None:
        """Start the guest's QEMU on a host, and see it wait for the guest.

        :raise ExecutionFailed: `qemu-start-failed`; nothing is left of it.
        """
        template = self._config.guest(guest).start
        words = [word.format(guest=guest, host=host) for word in template]
        try:
            await self._command(host, words, _START_DEADLINE_S)
            monitor = await self._wait_monitor(guest, host)
            status = (await monitor.execute("query-status"))["status"]
        except KawarimiError as error:
            await self.discard_destination(guest, host)
            raise ExecutionFailed(
                Slug.QEMU_START_FAILED,
                f"The QEMU for {guest} on {host} did not start: {error.what}",
                untouched="the guest runs on",
                hint="try its 'start' command by hand",
                scope=Scope.GUEST,
                facts={"start": words, **error.facts},
            ) from error
        if status != "inmigrate":
            # Not discarded: whatever runs there, it is not what was asked for.
            raise NeedsCleanup(
                Slug.QEMU_START_FAILED,
                f"The QEMU for {guest} on {host} does not wait for a guest: it is {status}.",
                untouched="the guest runs on",
                hint="its 'start' command must say '-incoming defer'; end it by hand",
                scope=Scope.GUEST,
                facts={"start": words},
            )

    async def discard_destination(self, guest: str, host: str) -> None:
        """End a QEMU that waits for the guest. Idempotent.

        :raise PreflightRefused: `split-brain-refused` if it runs the guest.
        """
        status = await self.status(guest, host)
        if status is None:
            return
        if status != "inmigrate" and self._hosts.get(guest) == host:
            raise PreflightRefused(
                Slug.SPLIT_BRAIN_REFUSED,
                f"The QEMU of {guest} on {host} runs the guest; it is not ended.",
                untouched="the guest",
                scope=Scope.GUEST,
            )
        await self._quit(guest, host)

    async def unplug(self, guest: str, deadline_s: float) -> hca.Unplugged:
        """Take the HCA from the guest; see `hca.unplug`."""
        monitor = await self._running(guest)
        for slot in self._slots(guest):
            inside = await hca.present(monitor, slot)
            if inside is not None:
                return await hca.unplug(monitor, inside, slot, deadline_s=deadline_s)
        return hca.Unplugged(duration_s=0.0, requests=0)

    async def plug(self, guest: str, deadline_s: float) -> None:
        """Give the guest the HCA that it gets on its host; see `hca.plug`."""
        spec = self._config.hca(guest, self._hosts[guest])
        assert spec is not None, "the coordinator plugs only where there is an HCA"
        await hca.plug(await self._running(guest), spec.hca(), deadline_s=deadline_s)

    async def migrate(
        self,
        guest: str,
        host: str,
        parameters: MigrationParameters,
        deadline_s: float,
        on_progress: Callable[[MigrationProgress], None],
    ) -> MigrationResult:
        """Move the guest, and end the QEMU that it left; see `migration.migrate`."""
        source, left = await self._running(guest), self._hosts[guest]
        result = await migration.migrate(
            source,
            await self._monitor(guest, host),
            self._config.host(host).address,
            hca_slots=self._slots(guest),
            parameters=parameters,
            deadline_s=deadline_s,
            on_progress=on_progress,
        )
        self._hosts[guest] = host
        await self._quit(guest, left)
        return result

    async def close(self) -> None:
        """Close all monitors; every guest runs on."""
        for guest, host in list(self._monitors):
            await self._forget(guest, host)

    def _slots(self, guest: str) -> list[str]:
        hcas = self._config.guest(guest).hcas.values()
        return list(dict.fromkeys(spec.slot for spec in hcas))

    def _socket(self, guest: str, host: str) -> Path:
        return Path(self._config.guest(guest).qmp.format(guest=guest, host=host))

    async def _running(self, guest: str) -> Monitor:
        host = self._hosts.get(guest) or await self.locate(guest)
        return await self._monitor(guest, host)

    async def _monitor(self, guest: str, host: str) -> Monitor:
        known = self._monitors.get((guest, host))
        if known is not None and not known.gone:
            return known
        await self._forget(guest, host)
        name = f"{guest}@{host}"
        transcript = self._transcripts / f"{name}.qmp" if self._transcripts else None
        monitor = await Monitor.connect(
            self._socket(guest, host),
            name=name,
            deadline_s=_CONNECT_DEADLINE_S,
            transcript=transcript,
        )
        self._monitors[guest, host] = monitor
        return monitor

    async def _check_place(self, guest: str, host: str) -> None:
        """See that nothing is in the guest's way on a host, and that its HCA can be had there."""
        source = await self._running(guest)
        left = await self.status(guest, host)
        if left is not None:
            raise PreflightRefused(
                Slug.MIGRATION_BUSY,
                f"{host} has a QEMU of {guest} already, which is {left}.",
                untouched="the guest runs on",
                hint="'kawarimi cleanup' ends what an operation has left",
                scope=Scope.GUEST,
            )
        await migration.refuse_busy(source)
        spec = self._config.hca(guest, host)
        if spec is not None:
            await hca.refuse_unusable(source, spec.hca())
            await self._refuse_unbound(host, spec.hca())

    async def _memory(self, guest: str) -> int:
        """Return the size of a guest's memory in bytes."""
        monitor = await self._running(guest)
        summary = await monitor.execute("query-memory-size-summary")
        return int(summary["base-memory"]) + int(summary.get("plugged-memory", 0))

    async def _wait_monitor(self, guest: str, host: str) -> Monitor:
        """Connect to a QEMU that has just been started, and may not listen yet."""
        give_up = time.monotonic() + _CONNECT_DEADLINE_S
        while True:
            try:
                return await self._monitor(guest, host)
            except ExecutionFailed:
                if time.monotonic() >= give_up:
                    raise
                await asyncio.sleep(_SOCKET_POLL_S)  # a socket file cannot be waited for

    async def _forget(self, guest: str, host: str) -> None:
        monitor = self._monitors.pop((guest, host), None)
        if monitor is not None:
            await monitor.close()

    async def _quit(self, guest: str, host: str) -> None:
        monitor = await self._monitor(guest, host)
        try:
            await monitor.execute("quit")
        except ExecutionFailed as error:
            if error.slug is not Slug.QEMU_GONE:  # which is what it was asked for
                raise
        if not await monitor.wait_gone(_QUIT_DEADLINE_S):
            raise NeedsCleanup(
                Slug.QMP_TIMEOUT,
                f"The QEMU of {guest} on {host} was told to end, and has not.",
                hint="end it by hand",
                scope=Scope.GUEST,
            )
        await self._forget(guest, host)

    async def _refuse_unbound(self, host: str, device: hca.Hca) -> None:
        """Refuse a device to be passed through that its host has not set aside for that.

        :raise PreflightRefused: `hca-unusable`.
        """
        address = device.properties.get("host")
        if device.driver != "vfio-pci" or address is None:
            return
        link = f"/sys/bus/pci/devices/{address}/driver"
        try:
            driver = await self._command(host, ["readlink", link], _COMMAND_DEADLINE_S)
        except ExecutionFailed as error:
            if error.slug is not Slug.COMMAND_FAILED:
                raise
            why = f"{host} has no PCI device {address}, or no driver is bound to it."
            raise hca.unusable(device, why) from error
        if Path(driver.strip()).name != "vfio-pci":
            bound = Path(driver.strip()).name
            why = f"on {host}, {address} is bound to {bound}, not to vfio-pci."
            raise hca.unusable(device, why)

    async def _command(self, host: str, words: Sequence[str], deadline_s: float) -> str:
        """Run a command on a host; return what it prints.

        :raise ExecutionFailed: `command-failed`, `command-timeout`, `program-missing`.
        """
        argv = [*self._config.host(host).run, *words]
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise ExecutionFailed(
                Slug.PROGRAM_MISSING,
                f"{argv[0]} cannot be run: {error.strerror}.",
                facts={"argv": argv},
            ) from error
        try:
            out, err = await asyncio.wait_for(process.communicate(), deadline_s)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise ExecutionFailed(
                Slug.COMMAND_TIMEOUT,
                f"On {host}, {words[0]} did not end in {deadline_s:.0f} s.",
                facts={"argv": argv},
            ) from None
        if process.returncode:
            raise ExecutionFailed(
                Slug.COMMAND_FAILED,
                f"On {host}, {words[0]} failed with exit code {process.returncode}.",
                facts={"argv": argv, "stderr": err.decode(errors="replace")[-2000:]},
            )
        return out.decode(errors="replace")

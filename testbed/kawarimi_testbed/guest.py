"""One guest of a testbed: where it runs, and what can be done with it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import msgspec
import zmq.asyncio

from kawarimi_bridge import hca
from kawarimi_bridge.agents import AgentClient
from kawarimi_bridge.migration import MigrationResult, migrate, refuse_unmovable
from kawarimi_bridge.migration_parameters import MigrationParameters
from kawarimi_bridge.qmp import Monitor
from kawarimi_testbed import qemu
from kawarimi_testbed.agents import connect_agent, context_in
from kawarimi_testbed.image.build import Image
from kawarimi_testbed.keeper import Kill
from kawarimi_testbed.ownership import KeeperClient
from kawarimi_testbed.remote import Remote
from kawarimi_testbed.spawn import process_name, spawn_qemu
from kawarimi_testbed.topology import Topology
from kawarimi_wire.errors import ExecutionFailed, KawarimiError, Scope, Slug
from kawarimi_wire.messages import ANSWER_MARGIN_S, AskDevice, VerbsDevice

BOOT_DEADLINE_S = 90.0
_QMP_DEADLINE_S = 15.0
_PROBE_S = 0.2
_SOCKET_POLL_S = 0.02
_UNPLUG_DEADLINE_S = 30.0
_MIGRATE_DEADLINE_S = 120.0
_VERBS_DEADLINE_S = 30.0


class Guest:
    """A guest. Started by `Testbed`; every method needs it to run."""

    def __init__(
        self, topology: Topology, name: str, keeper: KeeperClient, image: Image, logs: Path
    ) -> None:
        self.name = name
        self.host = ""
        """The host on which it runs; empty before it was started."""
        self.remote = Remote(name, topology.switch_namespace, topology.guest_address(name))
        self.run = self.remote.run
        self.topology = topology
        self._keeper = keeper
        self._image = image
        self._logs = logs
        self._monitor: Monitor | None = None
        self._agent: AgentClient | None = None
        self._context: zmq.asyncio.Context | None = None

    @property
    def monitor(self) -> Monitor:
        """Return the monitor of the QEMU that runs the guest."""
        assert self._monitor is not None, "the guest was not started"
        return self._monitor

    @property
    def ethernet_address(self) -> str:
        """Return the guest's address on the Ethernet, the same on every host."""
        return self.topology.guest_address(self.name)

    @property
    def hca_address(self) -> str | None:
        """Return the address that the guest's HCA has on its host; None without a fabric."""
        return self.topology.hca_address(self.host, self.name)

    async def start(self, host: str, *, with_hca: bool) -> None:
        """Start the guest's QEMU on a host; it boots when this returns.

        :raise ExecutionFailed: `qemu-start-failed`.
        """
        self._monitor = await self._spawn(host, incoming=False, with_hca=with_hca)
        self.host = host

    async def wait_ready(self, deadline_s: float = BOOT_DEADLINE_S) -> None:
        """Wait until the guest runs commands.

        :raise ExecutionFailed: `guest-not-ready`, or `qemu-gone` if QEMU has ended.
        """
        give_up = time.monotonic() + deadline_s
        while True:
            try:
                await self.run("true", deadline_s=10)
                return
            except ExecutionFailed as error:
                if self.monitor.gone or time.monotonic() >= give_up:
                    raise ExecutionFailed(
                        Slug.QEMU_GONE if self.monitor.gone else Slug.GUEST_NOT_READY,
                        f"{self.name} did not come up in {deadline_s:.0f} s."
                        if not self.monitor.gone
                        else f"The QEMU of {self.name} ended while it booted.",
                        hint=f"see {self._logs}",
                        scope=Scope.GUEST,
                        facts={"cause": error.what},
                    ) from error
                # A guest that boots cannot say so to a socket that it does not listen on yet.
                await asyncio.sleep(_PROBE_S)

    async def wait_verbs(self, deadline_s: float = _VERBS_DEADLINE_S) -> float:
        """Wait until the guest's verbs port is ACTIVE; return the seconds it took.

        :raise ExecutionFailed: `hca-not-ready`, with the state of the port.
        """
        started = time.monotonic()
        state = "no verbs device"
        while (waited := time.monotonic() - started) < deadline_s:
            links = msgspec.json.decode((await self.run("rdma -j link show")).stdout or "[]")
            if links:
                state = str(links[0]["state"])
                if state == "ACTIVE":
                    return waited
            await asyncio.sleep(_PROBE_S)
        raise ExecutionFailed(
            Slug.HCA_NOT_READY,
            f"The HCA of {self.name} is not ACTIVE after {deadline_s:.0f} s: {state}.",
            hint="see its agent.log and kernel log",
            scope=Scope.DEVICE,
        )

    async def agent(self, deadline_s: float = BOOT_DEADLINE_S) -> AgentClient:
        """Return the connection to the guest's agent: made on first use, closed with the guest.

        The testbed must have been started with agents.

        :raise KawarimiError: as `kawarimi_bridge.agents.AgentClient.connect`.
        """
        if self._agent is None:
            if self._context is None:
                self._context = context_in(self.topology.switch_namespace)
            self._agent = await connect_agent(
                self.topology, self.name, self._keeper.folder, deadline_s, self._context
            )
        return self._agent

    async def address_hca(self, deadline_s: float = _VERBS_DEADLINE_S) -> VerbsDevice:
        """Let the agent give the HCA its address, and wait until it is usable.

        :raise ExecutionFailed: `hca-not-ready`, or what the agent says.
        """
        address = self.topology.hca_prefix(self.host, self.name)
        mac = self.topology.hca_mac(self.host, self.name)
        request = AskDevice(mac, address or "", deadline_s)
        agent = await self.agent()
        return await agent.ask(request, VerbsDevice, deadline_s + ANSWER_MARGIN_S)

    async def plug(self) -> None:
        """Plug the HCA that the guest's host has for it; see `kawarimi_bridge.hca.plug`."""
        await hca.plug(self.monitor, qemu.hca(self.topology, self.host, self.name))

    async def unplug(self, deadline_s: float = _UNPLUG_DEADLINE_S) -> hca.Unplugged:
        """Unplug the guest's HCA; see `kawarimi_bridge.hca.unplug`."""
        return await hca.unplug(self.monitor, qemu.HCA_ID, qemu.HCA_SLOT, deadline_s=deadline_s)

    async def migrate(
        self,
        host: str,
        parameters: MigrationParameters | None = None,
        deadline_s: float = _MIGRATE_DEADLINE_S,
    ) -> MigrationResult:
        """Move the guest to another host; it runs there, and its old QEMU has ended.

        If this raises, the guest runs on where it was, unless the error is a `NeedsCleanup`.
        See `kawarimi_bridge.migration.migrate` for the errors.
        """
        await refuse_unmovable(self.monitor, [qemu.HCA_SLOT])  # before a QEMU is started for it
        destination = await self.spawn_destination(host)
        try:
            result = await migrate(
                self.monitor,
                destination,
                self.topology.host_address(host),
                hca_slots=[qemu.HCA_SLOT],
                parameters=parameters,
                deadline_s=deadline_s,
            )
        except BaseException:
            await destination.close()
            await self._keeper.request(Kill(process_name(self.name, host)))
            raise
        await self.arrive(host, destination)
        return result

    async def spawn_destination(self, host: str) -> Monitor:
        """Start a QEMU on another host that waits for the guest, and return its monitor.

        :raise UsageError: `unknown-host`.
        :raise ExecutionFailed: `qemu-start-failed`.
        """
        return await self._spawn(host, incoming=True, with_hca=False)

    async def arrive(self, host: str, destination: Monitor) -> None:
        """Take the QEMU that the guest has moved to for its own, and end the one that it left."""
        source, left = self.monitor, self.host
        self._monitor, self.host = destination, host
        await source.close()
        await self._keeper.request(Kill(process_name(self.name, left)))

    async def follow(self) -> None:
        """Find the guest where somebody else, the bridge, has moved it to.

        :raise ExecutionFailed: `qemu-gone` if it is nowhere.
        """
        if self._monitor is not None:
            await self._monitor.close()
        running = await self._keeper.processes()
        for host in (spec.name for spec in self.topology.hosts):
            process = process_name(self.name, host)
            if process in running:
                folder, logs = self._keeper.folder / process, self._logs / process
                self._monitor, self.host = await self._connect(process, folder, logs), host
                return
        raise ExecutionFailed(
            Slug.QEMU_GONE, f"No QEMU runs {self.name}.", hint=f"see {self._logs}"
        )

    async def save_kernel_log(self) -> None:
        """Write the guest's kernel log to its logs, if it still answers."""
        with contextlib.suppress(KawarimiError):
            log = await self.run("dmesg", deadline_s=8)
            (self._logs / f"{self.name}-kernel.log").write_text(log.stdout)

    async def close(self) -> None:
        """Close the monitor and the connection to the agent; the guest runs on."""
        if self._monitor is not None:
            await self._monitor.close()
        if self._agent is not None:
            await self._agent.close()
        if self._context is not None:
            self._context.term()

    async def _spawn(self, host: str, *, incoming: bool, with_hca: bool) -> Monitor:
        process = process_name(self.name, host)
        logs = self._logs / process
        folder = await spawn_qemu(
            self._keeper,
            self.topology,
            self._image,
            self._logs,
            self.name,
            host,
            incoming=incoming,
            with_hca=with_hca,
        )
        return await self._connect(process, folder, logs)

    async def _connect(self, process: str, folder: Path, logs: Path) -> Monitor:
        socket = folder / "qmp.sock"
        give_up = time.monotonic() + _QMP_DEADLINE_S
        while True:
            try:
                return await Monitor.connect(
                    socket,
                    name=process,
                    deadline_s=_QMP_DEADLINE_S,
                    transcript=logs / "qmp.log",
                )
            except ExecutionFailed as error:
                # QEMU has not made its socket yet, or has not begun to listen on it, or has ended.
                if process in await self._keeper.processes() and time.monotonic() < give_up:
                    await asyncio.sleep(_SOCKET_POLL_S)
                    continue
                said = (logs / "qemu.log").read_text(errors="replace").strip()
                raise ExecutionFailed(
                    Slug.QEMU_START_FAILED,
                    f"The QEMU of {process} did not start: {said or 'it said nothing'}",
                    hint=f"see {logs}",
                    scope=Scope.GUEST,
                ) from error

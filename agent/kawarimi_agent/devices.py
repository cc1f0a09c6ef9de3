"""The guest's verbs devices: what there is, and waiting until a plugged one is usable."""

from __future__ import annotations

import asyncio
import ipaddress

import msgspec

from kawarimi_agent import tools
from kawarimi_agent.events import KernelEvents
from kawarimi_agent.sysfs import Sysfs
from kawarimi_wire.errors import ExecutionFailed, Scope, Slug, UsageError
from kawarimi_wire.messages import (
    AskDevice,
    AskDevices,
    AskTraffic,
    Traffic,
    VerbsDevice,
)

REREAD_S = 0.2
"""How often a waiting request looks again without an event. Devices, links and addresses have
events; the state of an InfiniBand port and the table of GIDs have none but for verbs programs."""

_InterfaceAddress = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class Devices:
    """Answers what concerns verbs devices."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs

    async def list(self, request: AskDevices, uid: int) -> list[VerbsDevice]:
        """List the verbs devices with the addresses of their interfaces."""
        found = [self._sysfs.device(name) for name in self._sysfs.names()]
        addresses = await _addresses() if any(found) else {}
        return [_with_addresses(device, addresses) for device in found if device is not None]

    async def traffic(self, request: AskTraffic, uid: int) -> Traffic:
        """Say how many bytes have passed."""
        return self._sysfs.traffic()

    async def wait(self, request: AskDevice, uid: int) -> VerbsDevice:
        """Wait for a device to be usable, giving it its address; see `AskDevice`.

        :raise UsageError: `bad-usage`: the address is none.
        :raise ExecutionFailed: `hca-not-ready`: not by the deadline, with how far it came.
        """
        address = _interface_address(request.address)
        arrival = _Arrival(self._sysfs, request, address)
        loop = asyncio.get_running_loop()
        ends = loop.time() + request.deadline_s
        with KernelEvents() as events:
            while True:
                device = await arrival.advance()
                if device is not None:
                    return device
                left = ends - loop.time()
                if left <= 0:
                    raise arrival.failure()
                await events.changed(min(left, REREAD_S))


class _Arrival:
    """One HCA on its way to being usable.

    :ivar lacks: what it waits for now, in words.
    """

    def __init__(
        self,
        sysfs: Sysfs,
        request: AskDevice,
        address: _InterfaceAddress | None,
    ) -> None:
        self._sysfs = sysfs
        self._request = request
        self._mac = request.mac.lower()
        self._address = address
        self._addressed = ""
        self.lacks = ""
        self._facts: dict[str, object] = {}

    async def advance(self) -> VerbsDevice | None:
        """Do what can be done now; the device, if that was all."""
        device = self._find()
        if device is None:
            return None
        self._facts = {"device": device.name, "interface": device.interface}
        if self._address is not None:
            if not device.interface:
                self.lacks = f"{device.name} has no network interface to give the address to"
                return None
            if self._addressed != device.interface:
                words = ("replace", str(self._address), "dev", device.interface)
                try:
                    await tools.run("ip", "link", "set", "dev", device.interface, "up")
                    await tools.run("ip", "address", *words)
                except ExecutionFailed as error:  # the device may have gone away meanwhile
                    self.lacks = error.what
                    return None
                self._addressed = device.interface
        self._facts["port"] = device.port.state
        if device.port.state != "ACTIVE":
            self.lacks = f"the port of {device.name} is {device.port.state or 'unknown'}"
            if device.interface and not self._sysfs.has_carrier(device.interface):
                self.lacks += f", and {device.interface} has no link"
            return None
        device = _with_addresses(device, await _addresses())
        if not self._reachable(device):
            self.lacks = f"{device.name} has no GID for its address"
            return None
        return device

    def _find(self) -> VerbsDevice | None:
        names = [name for name in self._sysfs.names() if name not in self._request.not_]
        for device in map(self._sysfs.device, names):
            if device is not None and (not self._mac or device.mac == self._mac):
                return device
        if not self._mac:
            self.lacks = "there is no other verbs device"
        elif interface := self._sysfs.interface_of(self._mac):
            self.lacks = f"{interface} is there, and no verbs device over it"
        else:
            self.lacks = f"there is no device with the MAC {self._mac}"
        return None

    def _reachable(self, device: VerbsDevice) -> bool:
        """Whether a peer can address it: by its LID, or by a GID of RoCE version 2."""
        if device.port.link == "InfiniBand":
            return device.port.lid != 0 and self._sysfs.gid(device.name, "") is not None
        if self._address is not None:
            return self._sysfs.gid(device.name, str(self._address.ip)) is not None
        addresses = (address.partition("/")[0] for address in device.addresses)
        return any(self._sysfs.gid(device.name, address) for address in addresses)

    def failure(self) -> ExecutionFailed:
        """Return the error for the deadline."""
        return ExecutionFailed(
            Slug.HCA_NOT_READY,
            f"the HCA is not usable after {self._request.deadline_s:g} s: {self.lacks}",
            hint="see the guest's kernel log; look at the switch and the subnet manager",
            scope=Scope.DEVICE,
            facts={**self._facts, "lacks": self.lacks},
        )


class _Address(msgspec.Struct):
    local: str = ""
    prefixlen: int = 0


class _Interface(msgspec.Struct):
    ifname: str = ""
    addr_info: tuple[_Address, ...] = ()


async def _addresses() -> dict[str, tuple[str, ...]]:
    """Return the addresses of every network interface, each as ADDRESS/PREFIX."""
    argv = ("ip", "-j", "address", "show")
    rows = tools.parse(list[_Interface], await tools.run(*argv), *argv)
    return {row.ifname: tuple(f"{a.local}/{a.prefixlen}" for a in row.addr_info) for row in rows}


def _with_addresses(device: VerbsDevice, addresses: dict[str, tuple[str, ...]]) -> VerbsDevice:
    return msgspec.structs.replace(device, addresses=addresses.get(device.interface, ()))


def _interface_address(text: str) -> _InterfaceAddress | None:
    """Return an ADDRESS/PREFIX, or None for an empty one.

    :raise UsageError: `bad-usage`.
    """
    try:
        if text and "/" not in text:
            raise ValueError(f"{text!r} has no prefix length")
        return ipaddress.ip_interface(text) if text else None
    except ValueError as error:
        raise UsageError(
            Slug.BAD_USAGE,
            f"not an address for an HCA: {error}",
            untouched="the guest",
            hint="give ADDRESS/PREFIX, such as 192.0.2.11/24",
        ) from error

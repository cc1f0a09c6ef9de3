"""What the kernel says in /sys of verbs devices and of network interfaces. Reads, and waits never.

A device may go away between two reads: what cannot be read then is empty, and the next reading
does not have the device any more.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path

from kawarimi_wire.messages import Traffic, VerbsDevice, VerbsPort

_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_EMPTY_GIDS = 32
"""A GID table has a thousand entries and is filled from its beginning: after so many empty ones in
a row there are no more."""
_WORD = 4
"""`port_xmit_data` and `port_rcv_data` count words of this many bytes."""
_NO_COUNTER = {"lifespan"}
"""What lies beside the counters and is none."""

Gid = tuple[int, str]
"""Index in the port's table, and the GID as the kernel writes it."""


class Sysfs:
    """The kernel's account of devices.

    :param root: where sysfs is.
    """

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._verbs = root / "class/infiniband"
        self._net = root / "class/net"

    def names(self) -> list[str]:
        """Name the verbs devices."""
        return _list(self._verbs)

    def device(self, name: str) -> VerbsDevice | None:
        """Describe a verbs device, but for its addresses; None if there is none."""
        folder = self._verbs / name
        guid = _read(folder / "node_guid")
        if not guid:
            return None
        port = folder / "ports/1"
        interface = self.interface(name)
        return VerbsDevice(
            name=name,
            guid=guid,
            interface=interface,
            mac=self.mac(interface),
            pci=self._pci(folder / "device") or self._pci(self._net / interface / "device"),
            port=VerbsPort(
                state=_read(port / "state").rpartition(" ")[2],
                link=_read(port / "link_layer"),
                lid=int(_read(port / "lid") or "0", 16),
            ),
            addresses=(),
            counters=dict(self._counters(folder)),
        )

    def interface(self, name: str) -> str:
        """Return the network interface of a verbs device: RoCE's, or InfiniBand's IPoIB."""
        folder = self._verbs / name
        return (
            _read(folder / "parent")  # soft RoCE
            or next(iter(_list(folder / "device/net")), "")
            or _read(folder / "ports/1/gid_attrs/ndevs/0")
        )

    def mac(self, interface: str) -> str:
        """Return the hardware address of a network interface; empty without one."""
        return _read(self._net / interface / "address") if interface else ""

    def interface_of(self, mac: str) -> str:
        """Return the network interface that has a MAC; empty if there is none."""
        return next((name for name in _list(self._net) if self.mac(name) == mac), "")

    def has_carrier(self, interface: str) -> bool:
        """Whether a network interface is up and has a link."""
        return _read(self._net / interface / "carrier") == "1"

    def gid(self, name: str, address: str) -> Gid | None:
        """Find the GID by which a device is reached.

        On RoCE that of an address, in version 2, which IP routes; on InfiniBand the first.
        """
        port = self._verbs / name / "ports/1"
        if _read(port / "link_layer") == "InfiniBand":
            first = _read(port / "gids/0")
            return (0, first) if _is_gid(first) else None
        wanted = ipaddress.ip_address(address)
        mapped = wanted if wanted.version == 6 else ipaddress.ip_address(f"::ffff:{wanted}")
        empty = 0
        for index in sorted(map(int, _list(port / "gids"))):
            gid = _read(port / f"gids/{index}")
            if not _is_gid(gid):
                empty += 1
                if empty == _EMPTY_GIDS:
                    break
                continue
            empty = 0
            version = _read(port / f"gid_attrs/types/{index}")
            if ipaddress.ip_address(gid) == mapped and version == "RoCE v2":
                return index, gid
        return None

    def traffic(self) -> Traffic:
        """Add up what the guest has sent and received so far."""
        fabric = 0
        theirs = set()
        for name in self.names():
            interface = self.interface(name)
            theirs.add(interface)
            counters = self._verbs / name / "ports/1/counters"
            sent, received = _read(counters / "port_xmit_data"), _read(counters / "port_rcv_data")
            if sent and received:
                fabric += _WORD * (int(sent) + int(received))
            else:  # soft RoCE: everything passes through the interface
                fabric += self._bytes(interface)
        ethernet = sum(
            self._bytes(name)
            for name in _list(self._net)
            # Bridges and the like carry what others have carried; they are no device's.
            if name not in theirs and (self._net / name / "device").exists()
        )
        return Traffic(ethernet, fabric)

    def _bytes(self, interface: str) -> int:
        folder = self._net / interface / "statistics"
        return sum(int(_read(folder / name) or 0) for name in ("rx_bytes", "tx_bytes"))

    def _counters(self, folder: Path) -> Iterator[tuple[str, int]]:
        for group in ("ports/1/counters", "hw_counters", "ports/1/hw_counters"):
            for name in _list(folder / group):
                value = _read(folder / group / name)
                if value.isdecimal() and name not in _NO_COUNTER:
                    yield name, int(value)

    def _pci(self, link: Path) -> str:
        """Return the PCI function that a device is, or is on; empty if there is none."""
        if not link.exists():
            return ""
        parts = reversed(link.resolve().parts)
        return next((part for part in parts if _PCI.fullmatch(part)), "")


def _is_gid(text: str) -> bool:
    """Whether a table's entry is in use: it has more than the subnet's prefix."""
    return bool(text) and any(part.strip("0") for part in text.split(":")[4:])


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _list(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.iterdir())
    except OSError:
        return []

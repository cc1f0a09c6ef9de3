"""What a testbed consists of: hosts, fabrics, guests, and the addresses that follow from them.

A host is a network namespace with one bridge per network that it is on. The Ethernet joins all
hosts; a fabric joins the hosts that declare it. Every address and MAC is computed from the position
of a host and a guest in the lists, so that whoever knows the topology knows them, on either side.
"""

from __future__ import annotations

import enum
import re

import msgspec

from kawarimi_wire.errors import Slug, UsageError

MAX_GUESTS = 8
"""Guests a testbed may declare; a two-core machine carries three."""

_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")


class HcaVariant(enum.StrEnum):
    """How the HCA's NIC is emulated, and how it is plugged."""

    VIRTIO = "virtio"
    """virtio-net, ACPI hot-plug: quick in everything."""
    E1000E = "e1000e"
    """e1000e, ACPI hot-plug: its link takes two seconds to come up, as InfiniBand's takes more."""
    PCIEHP = "pciehp"
    """virtio-net, native PCIe hot-plug: the guest takes six seconds to let it go."""


class HostSpec(msgspec.Struct, frozen=True):
    """A host. `fabric` names the fabric that it has; None is a host with Ethernet only."""

    name: str
    fabric: str | None


DEFAULT_HOSTS = (
    HostSpec("hosta", "fabrica"),
    HostSpec("hostb", None),
    HostSpec("hostc", "fabricc"),
)
"""Two places with a fabric, each its own, and one with Ethernet only."""


class Topology(msgspec.Struct, frozen=True):
    """A declared testbed."""

    name: str = "default"
    hosts: tuple[HostSpec, ...] = DEFAULT_HOSTS
    guests: int = 2
    guest_memory_mib: int = 512
    hca: HcaVariant = HcaVariant.VIRTIO
    hca_device: str | None = None
    """The PCI address of a device that is bound to vfio-pci, and passed through instead of an
    emulated NIC; its MAC is the `hca_mac` of the guest on the first host."""
    ssh: bool = False
    agents: bool = False
    """Whether a guest agent runs in every guest, and gives the HCA its address."""
    accelerator: str = "tcg,thread=multi"

    def __post_init__(self) -> None:
        """Check the declaration.

        :raise UsageError: `bad-usage`.
        """
        for name in (self.name, *(host.name for host in self.hosts), *self.fabrics):
            if not _NAME.fullmatch(name):
                raise UsageError(
                    Slug.BAD_USAGE,
                    f"{name!r} cannot be a name: one to twelve of a-z and 0-9, a letter first.",
                    untouched="nothing was begun",
                )
        if not 1 <= self.guests <= MAX_GUESTS:
            raise UsageError(
                Slug.BAD_USAGE,
                f"A testbed has 1 to {MAX_GUESTS} guests, not {self.guests}.",
                untouched="nothing was begun",
            )

    @property
    def guest_names(self) -> list[str]:
        """Return the guests' names: vm1, vm2 and so on."""
        return [f"vm{number}" for number in range(1, self.guests + 1)]

    @property
    def fabrics(self) -> list[str]:
        """Return the fabrics that any host declares, each once."""
        return list(dict.fromkeys(host.fabric for host in self.hosts if host.fabric))

    def host(self, name: str) -> HostSpec:
        """Return a host.

        :raise UsageError: `unknown-host`.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        raise UsageError(
            Slug.UNKNOWN_HOST,
            f"The testbed {self.name!r} has no host {name!r}.",
            untouched="nothing was begun",
            hint=f"its hosts are {', '.join(host.name for host in self.hosts)}",
        )

    def guest_number(self, guest: str) -> int:
        """Return a guest's number, counted from 1.

        :raise UsageError: `unknown-guest`.
        """
        if guest not in self.guest_names:
            raise UsageError(
                Slug.UNKNOWN_GUEST,
                f"The testbed {self.name!r} has no guest {guest!r}.",
                untouched="nothing was begun",
                hint=f"its guests are {', '.join(self.guest_names)}",
            )
        return self.guest_names.index(guest) + 1

    # Namespaces. The switch is where all networks meet, and where the harness speaks from.

    @property
    def switch_namespace(self) -> str:
        """Return the namespace in which the networks meet."""
        return f"kw-{self.name}-switch"

    def namespace(self, host: str) -> str:
        """Return the namespace that is a host."""
        return f"kw-{self.name}-{self.host(host).name}"

    @property
    def namespaces(self) -> list[str]:
        """Return every namespace of the testbed, the switch first."""
        return [self.switch_namespace, *(self.namespace(host.name) for host in self.hosts)]

    # Addresses: 10.66.0.0/24 is the Ethernet, 10.67.F.0/24 the fabric number F.

    @property
    def switch_address(self) -> str:
        """Return the harness's own address on the Ethernet."""
        return "10.66.0.1"

    def host_address(self, host: str) -> str:
        """Return a host's address on the Ethernet, where its QEMUs listen for migrations."""
        return f"10.66.0.{101 + self._host_index(host)}"

    def guest_address(self, guest: str) -> str:
        """Return a guest's address on the Ethernet, the same on every host."""
        return f"10.66.0.{10 + self.guest_number(guest)}"

    def hca_address(self, host: str, guest: str) -> str | None:
        """Return the address that a guest's HCA has on a host; None where there is no fabric."""
        fabric = self.host(host).fabric
        if fabric is None:
            return None
        return f"10.67.{self.fabrics.index(fabric) + 1}.{10 + self.guest_number(guest)}"

    def hca_prefix(self, host: str, guest: str) -> str | None:
        """Return the same as ADDRESS/PREFIX."""
        address = self.hca_address(host, guest)
        return address and f"{address}/24"

    def guest_mac(self, guest: str) -> str:
        """Return the MAC of a guest's Ethernet, the same on every host."""
        return f"52:54:00:66:00:{self.guest_number(guest):02x}"

    def hca_mac(self, host: str, guest: str) -> str:
        """Return the MAC of the HCA that a guest gets on a host; another HCA on each host."""
        return f"52:54:00:67:{self._host_index(host) + 1:02x}:{self.guest_number(guest):02x}"

    def bridge_mac(self, host: str, network: str) -> str:
        """Return the fixed MAC of a host's bridge on a network."""
        networks = ["ethernet", *self.fabrics]
        return f"52:54:00:b0:{self._host_index(host) + 1:02x}:{networks.index(network):02x}"

    @property
    def hca_mtu(self) -> int:
        """Return the MTU of the HCAs' NICs: room for a RoCE MTU of 4096, where the NIC can."""
        return 1500 if self.hca is HcaVariant.E1000E else 4200

    def _host_index(self, host: str) -> int:
        return self.hosts.index(self.host(host))

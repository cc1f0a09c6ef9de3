"""The QEMU command line of a testbed guest."""

from __future__ import annotations

from pathlib import Path

from kawarimi_bridge.hca import Hca
from kawarimi_testbed.image.build import Image
from kawarimi_testbed.topology import HcaVariant, Topology

HCA_SLOT = "hca-port"
HCA_ID = "hca0"
BRIDGE_SOCKET = "bridge.sock"
_HCA_NETDEV = "hca"
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet mitigations=off nokaslr no_timer_check audit=0 panic=-1 net.ifnames=0"
)


def ethernet_tap(guest: str) -> str:
    """Return the name of the tap behind a guest's Ethernet."""
    return f"{guest}-eth"


def hca_tap(guest: str) -> str:
    """Return the name of the tap behind a guest's HCA."""
    return f"{guest}-hca"


def memory_kib(mib: int) -> int:
    """Return the size of a guest's memory for `-m`, never a multiple of 256 KiB.

    QEMU before 8.2.2 loses writes of an emulated guest that migrates: where it takes the dirty
    bitmap by whole words, it does not tell the TLBs, and what is written through them afterwards
    is not sent again (include/exec/ram_addr.h, cpu_physical_memory_sync_dirty_bitmap; mended by
    "physmem: Fix migration dirty bitmap coherency with TCG memory access", not in Debian 12's
    7.2). A size that is no whole number of words takes the other way, page by page, which is right.
    """
    return mib * 1024 + 8


def taps(topology: Topology, host: str, guest: str) -> dict[str, str]:
    """Return the taps that a guest's QEMU needs on a host, each with its network."""
    needed = {ethernet_tap(guest): "ethernet"}
    fabric = topology.host(host).fabric
    if fabric and not topology.hca_device:
        needed[hca_tap(guest)] = fabric
    return needed


def hca(topology: Topology, host: str, guest: str) -> Hca:
    """Return the HCA that a guest gets on a host that has a fabric."""
    if topology.hca_device:
        return Hca(HCA_ID, HCA_SLOT, "vfio-pci", {"host": topology.hca_device})
    properties: dict[str, object] = {
        "netdev": _HCA_NETDEV,
        "mac": topology.hca_mac(host, guest),
    }
    if topology.hca is HcaVariant.E1000E:
        return Hca(HCA_ID, HCA_SLOT, "e1000e", properties)
    properties["host_mtu"] = topology.hca_mtu
    return Hca(HCA_ID, HCA_SLOT, "virtio-net-pci", properties)


def argv(
    topology: Topology,
    host: str,
    guest: str,
    image: Image,
    payload: Path,
    folder: Path,
    logs: Path,
    *,
    incoming: bool,
    with_hca: bool,
) -> list[str]:
    """Return the command line of a guest's QEMU on a host.

    The same on every host but for what the host gives: a destination has the HCA's netdev if the
    host has a fabric, and never the device (QEMU would take the guest, which would not see it).

    :param folder: where its monitor socket goes.
    :param logs: where its serial console and its agents' log go.
    :param incoming: whether it is to wait for a guest (`-incoming defer`) instead of booting.
    :param with_hca: whether to boot with the HCA plugged.
    """
    boot = " ".join(
        [
            KERNEL_ARGUMENTS,
            f"kawarimi.guest={guest}",
            f"kawarimi.ethernet={topology.guest_mac(guest)}",
            f"kawarimi.address={topology.guest_address(guest)}/24",
        ]
    )
    words = [
        "qemu-system-x86_64",
        *("-name", f"{topology.name}-{guest}", "-nodefaults", "-no-user-config"),
        # A kernel panic reboots, which ends QEMU instead: whoever waits for the guest is told.
        "-no-reboot",
        *("-display", "none", "-machine", "q35", "-accel", topology.accelerator),
        *("-cpu", "max", "-smp", "1", "-m", f"{memory_kib(topology.guest_memory_mib)}K"),
        *("-kernel", str(image.vmlinux), "-initrd", str(image.initrd), "-append", boot),
        *disk("root", image.rootfs),
        *disk("payload", payload),
        *("-device", "virtio-rng-pci"),
        *_nic("eth", ethernet_tap(guest)),
        *("-device", f"virtio-net-pci,netdev=eth,mac={topology.guest_mac(guest)}"),
        *("-device", f"pcie-root-port,id={HCA_SLOT},chassis=1,slot=1"),
        *("-chardev", f"socket,id=qmp,path={folder}/qmp.sock,server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        # A monitor has one client at a time: that one is the testbed's own, this one the bridge's.
        *("-chardev", f"socket,id=bridge,path={folder}/{BRIDGE_SOCKET},server=on,wait=off"),
        *("-mon", "chardev=bridge,mode=control"),
        *("-chardev", f"file,id=console,path={logs}/console.log,append=on"),
        *("-chardev", f"file,id=agent,path={logs}/agent.log,append=on"),
        *("-serial", "chardev:console", "-serial", "chardev:agent"),
    ]
    if topology.hca is HcaVariant.PCIEHP:
        words += ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
    if hca_tap(guest) in taps(topology, host, guest):
        words += _nic(_HCA_NETDEV, hca_tap(guest))
    if topology.host(host).fabric and with_hca and not incoming:
        device = hca(topology, host, guest)
        properties = {"id": device.id, "bus": device.slot, **device.properties}
        text = ",".join(f"{name}={value}" for name, value in properties.items())
        words += ["-device", f"{device.driver},{text}"]
    if incoming:
        words += ["-incoming", "defer"]
    return words


def disk(name: str, file: Path) -> list[str]:
    """Return a read-only disk, as words of a command line."""
    # Without image locking: source and destination have the same read-only file open.
    drive = f"if=none,id={name},file={file},format=raw,readonly=on,file.locking=off"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]


def _nic(name: str, tap: str) -> list[str]:
    return ["-netdev", f"tap,id={name},ifname={tap},script=no,downscript=no"]

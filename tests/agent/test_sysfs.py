"""What is read from /sys, from trees as real HCAs have them: there is none of these here.

Soft RoCE is read for real, in the guests of tests/qemu/test_agent.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kawarimi_agent.sysfs import Sysfs
from kawarimi_wire.messages import Traffic, VerbsPort

PCI = "devices/pci0000:00/0000:00:02.0/0000:01:00.0"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def link(root: Path, name: str, target: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(os.path.relpath(root / target, (root / name).parent))


def interface(root: Path, name: str, mac: str, received: int, sent: int, device: str = "") -> None:
    folder = f"class/net/{name}"
    write(
        root,
        {
            f"{folder}/address": mac,
            f"{folder}/carrier": "1",
            f"{folder}/statistics/rx_bytes": str(received),
            f"{folder}/statistics/tx_bytes": str(sent),
        },
    )
    if device:
        (root / device).mkdir(parents=True, exist_ok=True)
        link(root, f"{folder}/device", device)


def hca(root: Path, name: str, layer: str, gids: dict[int, tuple[str, str]], lid: str) -> None:
    folder = f"class/infiniband/{name}"
    port = f"{folder}/ports/1"
    write(
        root,
        {
            f"{folder}/node_guid": "0c42:a103:0012:3456",
            f"{port}/state": "4: ACTIVE",
            f"{port}/link_layer": layer,
            f"{port}/lid": lid,
            f"{port}/counters/port_xmit_data": "100",
            f"{port}/counters/port_rcv_data": "20",
            f"{port}/hw_counters/lifespan": "10",
            f"{port}/hw_counters/out_of_buffer": "3",
        },
    )
    for index in range(64):
        gid, version = gids.get(index, ("0000:0000:0000:0000:0000:0000:0000:0000", ""))
        write(root, {f"{port}/gids/{index}": gid, f"{port}/gid_attrs/types/{index}": version})
    (root / PCI / "net").mkdir(parents=True, exist_ok=True)
    link(root, f"{folder}/device", PCI)


def test_infiniband(tmp_path: Path) -> None:
    gid = "fe80:0000:0000:0000:0c42:a103:0012:3456"
    hca(tmp_path, "mlx5_0", "InfiniBand", {0: (gid, "IB/RoCE v1")}, "0x1b")
    (tmp_path / PCI / "net/ibs2").mkdir()
    interface(tmp_path, "ibs2", "00:00:10:49:fe:80", 5, 6, PCI)
    interface(tmp_path, "eth0", "52:54:00:66:00:01", 1000, 500, "devices/virtio0")
    interface(tmp_path, "br0", "52:54:00:66:00:01", 1000, 500)
    interface(tmp_path, "lo", "00:00:00:00:00:00", 77, 77)
    sysfs = Sysfs(tmp_path)
    device = sysfs.device("mlx5_0")
    assert device is not None
    assert device.port == VerbsPort("ACTIVE", "InfiniBand", 27)
    assert (device.interface, device.pci) == ("ibs2", "0000:01:00.0")
    assert device.counters == {"port_xmit_data": 100, "port_rcv_data": 20, "out_of_buffer": 3}
    assert sysfs.gid("mlx5_0", "") == (0, gid)
    assert sysfs.traffic() == Traffic(ethernet=1500, fabric=4 * 120)


def test_roce(tmp_path: Path) -> None:
    mapped = "0000:0000:0000:0000:0000:ffff:c000:020b"
    link_local = "fe80:0000:0000:0000:0e42:a1ff:fe12:3456"
    gids = {
        0: (link_local, "IB/RoCE v1"),
        1: (link_local, "RoCE v2"),
        4: (mapped, "IB/RoCE v1"),
        5: (mapped, "RoCE v2"),
        60: ("0000:0000:0000:0000:0000:ffff:c000:020c", "RoCE v2"),
    }
    hca(tmp_path, "mlx5_0", "Ethernet", gids, "0x0")
    sysfs = Sysfs(tmp_path)
    assert sysfs.gid("mlx5_0", "192.0.2.11") == (5, mapped)
    assert sysfs.gid("mlx5_0", "fe80::e42:a1ff:fe12:3456") == (1, link_local)
    assert sysfs.gid("mlx5_0", "192.0.2.99") is None
    assert sysfs.gid("mlx5_0", "192.0.2.12") is None  # behind the end of the table's used part


@pytest.mark.parametrize("what", ["nothing", "half"])
def test_a_device_that_goes_away(tmp_path: Path, what: str) -> None:
    if what == "half":
        write(tmp_path, {"class/infiniband/mlx5_0/ports/1/state": ""})
    sysfs = Sysfs(tmp_path)
    assert [sysfs.device(name) for name in sysfs.names()] == ([None] if what == "half" else [])
    assert sysfs.device("mlx5_0") is None
    assert sysfs.gid("mlx5_0", "192.0.2.1") is None
    assert sysfs.traffic() == Traffic(0, 0)

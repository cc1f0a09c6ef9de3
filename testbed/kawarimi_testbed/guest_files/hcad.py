"""Stand in for an HCA's driver: make a verbs device of each HCA NIC when it is plugged.

A real HCA's driver makes its verbs device when the PCI device appears. Here the device is a NIC,
and this makes a soft-RoCE device over it: told by the kernel's uevents, never by polling. When the
NIC goes, the kernel removes the verbs device with it. Which MACs are HCAs, and the address and MTU
that each is to have, stands in /opt/kawarimi/etc/hca, one `MAC ADDRESS/PREFIX MTU` a line; an
address of `-` is left to the guest agent.
"""

from __future__ import annotations

import os
import socket
import subprocess

NETLINK_KOBJECT_UEVENT = 15
KERNEL_GROUP = 1
NET = "/sys/class/net"

Hcas = dict[str, tuple[str, str]]


def known_hcas() -> Hcas:
    """Return the address and the MTU of each HCA, by MAC."""
    with open("/opt/kawarimi/etc/hca") as file:
        rows = (line.split() for line in file)
        return {mac: (address, mtu) for mac, address, mtu in rows}


def verbs_name() -> str:
    """Return the first free name of the form rxeN: one HCA after another is rxe0."""
    number = 0
    while os.path.exists(f"/sys/class/infiniband/rxe{number}"):
        number += 1
    return f"rxe{number}"


def attach(link: str, hcas: Hcas) -> None:
    """Make a verbs device over a network interface, if it is an HCA's."""
    try:
        with open(f"{NET}/{link}/address") as file:
            address, mtu = hcas[file.read().strip()]
    except (OSError, KeyError):
        return
    name = verbs_name()
    commands = [f"ip link set {link} mtu {mtu} up"]
    if address != "-":
        commands.append(f"ip address replace {address} dev {link}")
    commands.append(f"rdma link add {name} type rxe netdev {link}")
    for command in commands:
        done = subprocess.run(command.split(), stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"hcad: {command}: {done.stderr.strip()}")
            return
    print(f"hcad: {name} over {link} ({address})")


def main() -> None:
    """Attach what is there, then what comes, for ever."""
    hcas = known_hcas()
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT)
    events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    events.bind((0, KERNEL_GROUP))  # before the first look, so that no device falls in between
    for link in os.listdir(NET):
        attach(link, hcas)
    while True:
        words = events.recv(65536).decode().split("\0")
        fields = dict(word.split("=", 1) for word in words if "=" in word)
        if fields.get("SUBSYSTEM") == "net" and fields.get("ACTION") == "add":
            attach(fields["INTERFACE"], hcas)


if __name__ == "__main__":
    main()

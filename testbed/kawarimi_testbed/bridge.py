"""The bridge's configuration for a testbed, and commands that run where its networks meet."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kawarimi_testbed import qemu
from kawarimi_testbed.agents import HARNESS, KEYS, endpoint
from kawarimi_testbed.spawn import process_name
from kawarimi_testbed.topology import Topology
from kawarimi_wire.keys import PUBLIC, SECRET, load_public

CONFIG = "kawarimi.toml"
"""Its name in the testbed's folder."""
STATE = "state"
"""The folder of its operations, in the testbed's folder."""


def write_bridge_config(topology: Topology, folder: Path) -> Path:
    """Write the configuration of a bridge that moves a testbed's guests; return the file.

    :param folder: the testbed's, with the keys of its agents.
    """
    keys = folder / KEYS
    lines = [f"key = {_toml(str(keys / (HARNESS + SECRET)))}"]
    for host in topology.hosts:
        address = topology.host_address(host.name)
        lines += ["", f"[hosts.{host.name}]", f"address = {_toml(address)}"]
    start = [sys.executable, "-m", "kawarimi_bridge.cli.main", "testbed", "spawn"]
    start += ["--name", topology.name, "{guest}", "{host}"]
    monitor = folder / process_name("{guest}", "{host}") / qemu.BRIDGE_SOCKET
    for guest in topology.guest_names:
        agent_key = load_public(keys / (guest + PUBLIC)).decode()
        lines += [
            "",
            f"[guests.{guest}]",
            f"agent = {_toml(endpoint(topology, guest))}",
            f"agent_key = {_toml(agent_key)}",
            f"qmp = {_toml(str(monitor))}",
            f"start = {_toml(start)}",
        ]
        for host in topology.hosts:
            if not host.fabric:
                continue
            hca = qemu.hca(topology, host.name, guest)
            properties = [f"{name} = {_toml(value)}" for name, value in hca.properties.items()]
            lines += [
                "",
                f"[guests.{guest}.hcas.{host.name}]",
                f"fabric = {_toml(host.fabric)}",
                f"slot = {_toml(hca.slot)}",
                f"id = {_toml(hca.id)}",
                f"driver = {_toml(hca.driver)}",
                f"mac = {_toml(topology.hca_mac(host.name, guest))}",
                f"address = {_toml(topology.hca_prefix(host.name, guest))}",
                f"properties = {{ {', '.join(properties)} }}",
            ]
    file = folder / CONFIG
    file.write_text("\n".join(lines) + "\n")
    return file


def bridge_command(
    topology: Topology, folder: Path, state: Path, words: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Return the argv and environment that run `kawarimi WORDS…` as the testbed's bridge.

    The guests' Ethernet is reached from the namespace in which the networks meet, and from nowhere
    else on this machine.

    :param folder: the testbed's.
    :param state: the folder for what operations leave behind.
    """
    inside = ["ip", "netns", "exec", topology.switch_namespace]
    environment = {
        **os.environ,
        "KAWARIMI_CONFIG": str(folder / CONFIG),
        "KAWARIMI_STATE": str(state),
    }
    return [*inside, sys.executable, "-m", "kawarimi_bridge.cli.main", *words], environment


def _toml(value: object) -> str:
    """Return a value as TOML writes it: JSON's strings, numbers and arrays are TOML's too."""
    return msgspec.json.encode(value).decode()

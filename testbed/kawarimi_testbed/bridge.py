"""The bridge's configuration for a testbed, and commands that run where its networks meet."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kawarimi_testbed import qemu
from kawarimi_testbed.agents import HARNESS, KEYS, endpoint
from kawarimi_testbed.remote import Completed
from kawarimi_testbed.spawn import process_name
from kawarimi_testbed.topology import Topology
from kawarimi_wire.errors import ExecutionFailed, Slug
from kawarimi_wire.keys import PUBLIC, SECRET, load_public

if TYPE_CHECKING:
    from kawarimi_testbed.testbed import Testbed

CONFIG = "kawarimi.toml"
"""Its name in the testbed's folder."""
_DEADLINE_S = 600.0


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


async def run_bridge(
    testbed: Testbed, state: Path, words: Sequence[str], deadline_s: float = _DEADLINE_S
) -> Completed:
    """Run `kawarimi WORDS…` as the testbed's bridge, to its end.

    The guests are looked for again afterwards, since they may have been moved.

    :raise ExecutionFailed: `command-timeout`.
    """
    async with bridge_process(testbed, state, words) as process:
        try:
            out, err = await asyncio.wait_for(process.communicate(), deadline_s)
        except TimeoutError as error:
            raise ExecutionFailed(
                Slug.COMMAND_TIMEOUT, f"'kawarimi {' '.join(words)}' did not end in time."
            ) from error
    await asyncio.gather(*(guest.follow() for guest in testbed.guests.values()))
    assert process.returncode is not None
    return Completed(process.returncode, out.decode(), err.decode(errors="replace"))


@contextlib.asynccontextmanager
async def bridge_process(
    testbed: Testbed, state: Path, words: Sequence[str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start `kawarimi WORDS…` as the testbed's bridge; leaving this ends it."""
    argv, environment = bridge_command(testbed.topology, testbed.keeper.folder, state, words)
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _toml(value: object) -> str:
    """Return a value as TOML writes it: JSON's strings, numbers and arrays are TOML's too."""
    return msgspec.json.encode(value).decode()

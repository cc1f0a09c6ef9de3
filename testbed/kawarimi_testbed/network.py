"""The testbed's networks: one namespace per host, bridges with fixed MACs, veth between them.

Nothing is made in the machine's own namespace, so that testbeds neither see the machine's networks
nor each other's, and all may use the same addresses. Deleting the namespaces deletes everything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from kawarimi_testbed.topology import Topology
from kawarimi_wire.errors import ExecutionFailed, NeedsCleanup, PreflightRefused, Slug

_DEADLINE_S = 20.0
_MTU = "4200"
"""Of bridges and veths: as large as any NIC's, so that the NIC's own MTU counts."""


def _ip(*words: str) -> str:
    done = subprocess.run(
        ["ip", *words], capture_output=True, text=True, timeout=_DEADLINE_S, check=False
    )
    if done.returncode != 0:
        raise ExecutionFailed(
            Slug.TESTBED_START_FAILED,
            f"'ip {' '.join(words)}' failed: {done.stderr.strip()}.",
            facts={"argv": ["ip", *words]},
        )
    return done.stdout


def existing_namespaces() -> set[str]:
    """Return the names of the machine's network namespaces."""
    folder = Path("/run/netns")
    return set(os.listdir(folder)) if folder.is_dir() else set()


def refuse_foreign_namespaces(topology: Topology) -> None:
    """Refuse to go on where a namespace of a name that the testbed needs is there already.

    :raise PreflightRefused: `namespace-in-use`.
    """
    taken = sorted(existing_namespaces() & set(topology.namespaces))
    if taken:
        raise PreflightRefused(
            Slug.NAMESPACE_IN_USE,
            f"The network namespaces {', '.join(taken)} exist, and no testbed owns them.",
            untouched="nothing was made, and they were left alone",
            hint="choose another --name, or delete them with 'ip netns delete'",
            facts={"namespaces": taken},
        )


def create(topology: Topology) -> None:
    """Make the namespaces, bridges and links of a testbed.

    :raise ExecutionFailed: `testbed-start-failed`; the caller deletes what was made.
    """
    switch = topology.switch_namespace
    for namespace in topology.namespaces:
        _ip("netns", "add", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
    for network in ["ethernet", *topology.fabrics]:
        _add_bridge(switch, f"br-{network}", "52:54:00:b0:00:00")
    _ip("-n", switch, "address", "add", f"{topology.switch_address}/24", "dev", "br-ethernet")
    for host in topology.hosts:
        namespace = topology.namespace(host.name)
        for network in ["ethernet", *([host.fabric] if host.fabric else [])]:
            bridge = f"br-{network}"
            _add_bridge(namespace, bridge, topology.bridge_mac(host.name, network))
            kind = "eth" if network == "ethernet" else "fab"
            far = f"{kind}{topology.hosts.index(host)}"
            _ip("-n", namespace, "link", "add", f"up-{kind}", "type", "veth",
                "peer", "name", far, "netns", switch)  # fmt: skip
            _attach(namespace, f"up-{kind}", bridge)
            _attach(switch, far, bridge)
        address = f"{topology.host_address(host.name)}/24"
        _ip("-n", namespace, "address", "add", address, "dev", "br-ethernet")


def _add_bridge(namespace: str, name: str, mac: str) -> None:
    # With a MAC of its own: a bridge otherwise takes its MAC from its ports and changes it when a
    # tap comes or goes, and TCP between guest and host stalls until the ARP entries expire.
    _ip("-n", namespace, "link", "add", name, "address", mac, "type", "bridge",
        "forward_delay", "0", "stp_state", "0")  # fmt: skip
    _ip("-n", namespace, "link", "set", name, "mtu", _MTU, "up")


def _attach(namespace: str, link: str, bridge: str) -> None:
    _ip("-n", namespace, "link", "set", link, "mtu", _MTU, "master", bridge, "up")


def add_tap(topology: Topology, host: str, tap: str, network: str) -> None:
    """Make a tap on a host's bridge, if it is not there already."""
    namespace = topology.namespace(host)
    if tap not in _ip("-n", namespace, "-br", "link", "show"):
        _ip("-n", namespace, "tuntap", "add", tap, "mode", "tap")
    _attach(namespace, tap, f"br-{network}")


def delete(topology: Topology) -> None:
    """Delete a testbed's namespaces and end whatever still runs in them.

    Idempotent. Only for namespaces that the testbed made: everything in them was started by it.

    :raise NeedsCleanup: `testbed-start-failed`, naming the namespaces that could not be deleted.
    """
    left: dict[str, object] = {}
    for namespace in topology.namespaces:
        if namespace not in existing_namespaces():
            continue
        try:
            for pid in _ip("netns", "pids", namespace).split():
                _kill(int(pid))
            _ip("netns", "delete", namespace)
        except (ExecutionFailed, subprocess.TimeoutExpired) as error:
            left[namespace] = str(error)
    if left:
        raise NeedsCleanup(
            Slug.TESTBED_START_FAILED,
            f"These network namespaces could not be deleted: {', '.join(left)}.",
            hint="delete them with 'ip netns delete'",
            facts=left,
        )


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

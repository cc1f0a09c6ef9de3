"""What a testbed has left behind: nothing, or a list of it."""

from __future__ import annotations

from pathlib import Path

import psutil

from kawarimi_testbed.network import existing_namespaces
from kawarimi_testbed.paths import run_dir
from kawarimi_testbed.topology import Topology


def leftovers(topology: Topology, *folders: Path) -> list[str]:
    """Name every namespace, process and folder of a testbed that exists, and every mount below
    the given folders. A tap cannot outlive its namespace."""
    left = [f"namespace {name}" for name in existing_namespaces() & set(topology.namespaces)]
    if run_dir(topology.name).exists():
        left.append(f"folder {run_dir(topology.name)}")
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        words = process.info["cmdline"] or []
        mine = f"{topology.name}-vm" in " ".join(words) or str(run_dir(topology.name)) in words
        if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
            left.append(f"process {process.info['pid']}: {' '.join(words)[:80]}")
    for line in Path("/proc/mounts").read_text().splitlines():
        if any(str(folder) in line for folder in folders):
            left.append(f"mount {line}")
    return left

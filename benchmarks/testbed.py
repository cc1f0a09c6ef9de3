"""How long the testbed takes: boot, unplug, plug, migration, idle and under a TCP job.

Prints one JSON object: where it was measured, and every single figure, in seconds. It judges
nothing. Guests are emulated: compare figures within one run, not with another machine's.

    python benchmarks/testbed.py [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import time

from kawarimi_bridge.cli.output import Progress
from kawarimi_bridge.migration import MigrationResult
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.image.build import Image, build_image
from kawarimi_testbed.mpi import mpirun
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import HcaVariant, Topology

Series = dict[str, list[float]]


async def boot(image: Image, rounds: int) -> Series:
    """Time from nothing to two guests with ACTIVE ports."""
    series: Series = {"boot_two_guests_s": []}
    for _ in range(rounds):
        started = time.monotonic()
        async with Testbed(Topology(name="bench"), image):
            series["boot_two_guests_s"].append(time.monotonic() - started)
    return series


async def hotplug(image: Image, variant: HcaVariant, rounds: int) -> Series:
    """Time unplug to proof, and plug to ACTIVE."""
    series: Series = {f"{variant}_unplug_s": [], f"{variant}_plug_to_active_s": []}
    async with Testbed(Topology(name="bench", guests=1, hca=variant), image) as testbed:
        guest = testbed.guest("vm1")
        for _ in range(rounds):
            series[f"{variant}_unplug_s"].append((await guest.unplug()).duration_s)
            started = time.monotonic()
            await guest.plug()
            await guest.wait_verbs()
            series[f"{variant}_plug_to_active_s"].append(time.monotonic() - started)
    return series


async def move(guest: Guest, rounds: int) -> list[MigrationResult]:
    """Move a guest there and back."""
    return [await guest.migrate(host) for _ in range(rounds) for host in ("hostb", "hosta")]


async def migration(image: Image, rounds: int) -> Series:
    """Time migrations of an idle guest, then of one under a TCP job; what the job saw."""
    series: Series = {}
    async with Testbed(Topology(name="bench"), image, with_hca=False) as testbed:
        guest = testbed.guest("vm1")
        words = mpirun(
            testbed.topology, ["vm1", "vm2"], ["ring", "{seconds}", "16384", "/run/on"], btl="tcp"
        )
        for load in ("idle", "tcp_job"):
            job = None
            if load == "tcp_job":
                command = [word.format(seconds=6 * rounds + 10) for word in words]
                job = asyncio.create_task(guest.run(command, deadline_s=6 * rounds + 120))
                await guest.run("until [ -e /run/on ]; do sleep 0.05; done", deadline_s=60)
            results = await move(guest, rounds)
            series[f"{load}_migration_total_s"] = [result.total_s for result in results]
            series[f"{load}_migration_downtime_s"] = [result.downtime_s for result in results]
            if job is not None:
                report = json.loads((await job).stdout)
                assert report["errors"] == 0
                series[f"{load}_longest_stall_s"] = [report["longest_s"]]
    return series


async def measure(image: Image, rounds: int) -> Series:
    """Run everything, one after the other."""
    series = await boot(image, min(rounds, 3))
    for variant in HcaVariant:
        series |= await hotplug(image, variant, rounds)
    return series | await migration(image, rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    image = build_image(Progress())
    version = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    )
    provenance = {
        "qemu": version.stdout.splitlines()[0],
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "image": image.folder.name,
        "rounds": rounds,
    }
    series = asyncio.run(measure(image, rounds))
    print(json.dumps({"provenance": provenance, "series": series}, indent=1))


if __name__ == "__main__":
    main()

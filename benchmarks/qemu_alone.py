"""What a program notices of `kawarimi migrate`, against QEMU's own migration of the same guests.

Two guests go together to and fro between hosts with Ethernet only, under a verified ring at full
load: by the operator's command, and by QEMU told to migrate both and nothing else, in turn. There
is no fabric to switch, so that the migration is all there is to notice. Prints one JSON object:
every stall (the ring's longest exchange) and downtime (QEMU's own account) in seconds, their
spread, and the ratios of the medians. It judges nothing. Guests are emulated: compare within one
run.

    python benchmarks/qemu_alone.py [--rounds N] [--kind btl|ucp]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from pathlib import Path

from jobs import machine, spread
from kawarimi_bridge.cli.output import Progress
from kawarimi_testbed.demo import move
from kawarimi_testbed.image.build import build_image
from kawarimi_testbed.job import RingJob, running_ring
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import HostSpec, Topology
from kawarimi_wire.phases import Mode

HOSTS = ("hosta", "hostb")
BY = ("qemu", "kawarimi")
_AFTER_S = 1.0
"""What a migration has left behind it, the ring notices within this."""
_BETWEEN_S = 2.0
"""How long the ring computes undisturbed before the next one."""


async def migrate(testbed: Testbed, job: RingJob, by: str, host: str, out: Path) -> list[float]:
    """Move both guests; return the ring's longest exchange, and the longer downtime."""
    before = len(job.laps)
    if by == "qemu":
        guests = testbed.guests.values()
        moved = await asyncio.gather(*(guest.migrate(host) for guest in guests))
        downtime_s = max(result.downtime_s for result in moved)
    else:
        downtime_s = (await move(testbed, job, host, Mode.LIVE, out)).downtime_s
    await asyncio.sleep(_AFTER_S)
    await job.next_lap()
    return [max(lap.longest_s for lap in job.laps[before:]), downtime_s]


async def measure(rounds: int, kind: str) -> tuple[dict[str, list[list[float]]], int]:
    """Move to and fro; return the figures, and how many bytes were wrong."""
    found: dict[str, list[list[float]]] = {by: [] for by in BY}
    hosts = tuple(HostSpec(name, None) for name in HOSTS)
    topology = Topology(name="bench", hosts=hosts, agents=True)
    image = build_image(Progress())
    async with (
        Testbed(topology, image, with_hca=False) as testbed,
        running_ring(testbed, topology.guest_names, kind=kind) as job,
    ):
        with tempfile.TemporaryDirectory() as folder:
            moves = 0
            for number in range(rounds):
                for by in BY if number % 2 else reversed(BY):
                    await asyncio.sleep(_BETWEEN_S)
                    moves += 1
                    host = HOSTS[moves % 2]
                    found[by].append(await migrate(testbed, job, by, host, Path(folder)))
    assert job.report is not None
    return found, job.report.errors


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--kind", choices=["btl", "ucp"], default="btl")
    options = parser.parse_args()
    found, errors = asyncio.run(measure(options.rounds, options.kind))
    series = {
        f"{by} {name}": list(values)
        for by in BY
        for name, values in zip(("stall", "downtime"), zip(*found[by], strict=True), strict=True)
    }
    median = {name: statistics.median(values) for name, values in series.items()}
    result = {
        "provenance": machine(options),
        "data_errors": errors,
        "ratio": {
            "stall, kawarimi by qemu": median["kawarimi stall"] / median["qemu stall"],
            **{f"{by}, stall by downtime": median[f"{by} stall"] / median[f"{by} downtime"]
               for by in BY},
        },
        "spread": {name: spread(values) for name, values in series.items() if len(values) > 1},
        "series": series,
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

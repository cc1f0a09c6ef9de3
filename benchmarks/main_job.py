"""What a program notices of a whole migration, live and frozen in turn, in one run.

Two guests go together from InfiniBand to Ethernet and back, under a verified ring at full load, in
one mode and then in the other, round after round. Prints one JSON object: every single figure in
seconds, and their medians and spread; `ratio` is the median of the live mode by that of the frozen
one. It judges nothing. Guests are emulated: compare figures within one run.

    python benchmarks/main_job.py [--rounds N] [--ranks-per-guest N] [--kind btl|ucp]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from jobs import machine, spread
from kawarimi_bridge.cli.output import Progress
from kawarimi_testbed.demo import DemoOperation, move
from kawarimi_testbed.image.build import build_image
from kawarimi_testbed.job import running_ring
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import Topology
from kawarimi_wire.phases import Mode

WAY = ("hostb", "hosta")
Series = Mapping[str, list[float]]


def figures(done: DemoOperation) -> dict[str, float]:
    """Name what is kept of a move."""
    there = "fallback" if done.to == WAY[0] else "recovery"
    of_all = {
        "duration": done.duration_s,
        "stall": done.stall_s,
        "gap": done.gap_s,
        "downtime": done.downtime_s,
    }
    of_phases = {f"stall {row.phase}": row.stall_s for row in done.phases if row.stall_s}
    named = {**of_all, **of_phases}
    return {f"{done.mode} {there} {name}": value for name, value in named.items()}


async def measure(rounds: int, ranks_per_guest: int, kind: str) -> tuple[Series, int]:
    """Move to and fro; return the figures and how many bytes were wrong."""
    series: dict[str, list[float]] = defaultdict(list)
    image = build_image(Progress())
    topology = Topology(name="bench", agents=True)
    with tempfile.TemporaryDirectory() as folder:
        async with Testbed(topology, image) as testbed:
            guests = topology.guest_names
            async with running_ring(
                testbed, guests, ranks_per_guest=ranks_per_guest, kind=kind
            ) as job:
                for _ in range(rounds):
                    for mode in Mode:
                        for host in WAY:
                            done = await move(testbed, job, host, mode, Path(folder))
                            for name, value in figures(done).items():
                                series[name].append(value)
    assert job.report is not None
    return series, job.report.errors


def ratios(series: Series) -> dict[str, float]:
    """Divide the medians of the live mode by those of the frozen one."""
    return {
        name: statistics.median(series[f"live {name}"]) / statistics.median(values)
        for mode_and_name, values in series.items()
        for mode, name in [mode_and_name.split(" ", 1)]
        if mode == "frozen" and name.endswith(" stall")
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks-per-guest", type=int, default=1)
    parser.add_argument("--kind", choices=["btl", "ucp"], default="btl")
    options = parser.parse_args()
    series, errors = asyncio.run(measure(options.rounds, options.ranks_per_guest, options.kind))
    result = {
        "provenance": machine(options),
        "data_errors": errors,
        "ratio": ratios(series),
        "spread": {name: spread(values) for name, values in series.items() if len(values) > 1},
        "series": series,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

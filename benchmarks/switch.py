"""How long a switch takes, step by step, against the number of ranks.

Runs a job that communicates without a break, leads it to and fro between two BTLs on this machine,
and prints one JSON object: per number of ranks and direction every switch's report, and the medians
of each step's duration, of the ranks' own time in it, and of the longest gap of any rank.

usage: switch.py [--ranks 2,4,8] [--cycles N] [--fabric BTL] [--fallback BTL] [--interface NAME]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import tempfile
from pathlib import Path

import msgspec

from kawarimi_agent.coordinator import Switch
from kawarimi_agent.ranks import RankServer
from kawarimi_agent.report import SwitchReport
from kawarimi_ompi.build import OpenMpi, build, find_open_mpi
from kawarimi_ompi.launcher import Choice, environment

DEADLINE_S = 60.0
PROGRAM = Path(__file__).parent / "programs" / "exchange.c"


async def series(
    server: RankServer, open_mpi: OpenMpi, binary: Path, ranks: int, options: argparse.Namespace
) -> list[SwitchReport]:
    """Run one job, and switch it to and fro."""
    stop = server.path.with_name(f"stop{ranks}")
    command = ["mpirun", "-n", str(ranks), str(binary), str(stop)]
    given = {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    choice = Choice(options.fabric, options.fallback, server.path, options.interface)
    variables = environment(command, given, open_mpi, build(open_mpi), choice)
    process = await asyncio.create_subprocess_exec(*command, env=variables)
    reports = []
    try:
        if not await server.wait(lambda: len(server.ranks) == ranks, DEADLINE_S):
            raise TimeoutError(f"{len(server.ranks)} of {ranks} ranks said hello")
        job = sorted(server.ranks, key=lambda rank: rank.hello.vpid)
        await Switch("bench", job, options.fabric, deadline_s=DEADLINE_S).run()
        for _ in range(options.cycles):
            for to in (options.fallback, options.fabric):
                reports.append(await Switch("bench", job, to, deadline_s=DEADLINE_S).run())
    finally:
        stop.touch()
        async with asyncio.timeout(DEADLINE_S):
            await process.wait()
            await server.wait(lambda: not server.ranks, DEADLINE_S)
    return reports


def summary(reports: list[SwitchReport]) -> dict[str, object]:
    """Medians over the switches in one direction; milliseconds."""
    steps = {
        step.name: {
            "duration_ms": statistics.median(r.steps[i].duration_s for r in reports) * 1e3,
            "rank_ms": statistics.median(r.steps[i].rank_s for r in reports) * 1e3,
        }
        for i, step in enumerate(reports[0].steps)
    }
    gaps = [max(rank.longest_gap_s for rank in report.ranks) for report in reports]
    return {
        "duration_ms": statistics.median(report.duration_s for report in reports) * 1e3,
        "longest_gap_ms": statistics.median(gaps) * 1e3,
        "worst_gap_ms": max(gaps) * 1e3,
        "steps": steps,
    }


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run every series."""
    open_mpi = find_open_mpi()
    report: dict[str, object] = {
        "open_mpi": open_mpi.version,
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "options": vars(options),
    }
    with tempfile.TemporaryDirectory() as directory:
        binary = Path(directory) / "exchange"
        subprocess.run(  # noqa: ASYNC221 (nothing else is to be done meanwhile)
            [open_mpi.mpicc, "-O2", "-o", binary, PROGRAM], check=True, timeout=120
        )
        server = RankServer(Path(directory) / "ranks.sock")
        await server.start()
        for ranks in map(int, options.ranks.split(",")):
            reports = await series(server, open_mpi, binary, ranks, options)
            report[f"{ranks} ranks"] = {
                to: {
                    "summary": summary([r for r in reports if r.to == to]),
                    "switches": msgspec.to_builtins([r for r in reports if r.to == to]),
                }
                for to in (options.fallback, options.fabric)
            }
        await server.stop()
    return report


def main() -> None:
    """Measure, and print the series."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", default="2,4,8")
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--fabric", default="tcp")
    parser.add_argument("--fallback", default="vader")
    parser.add_argument("--interface", default="lo")
    print(json.dumps(asyncio.run(measure(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()

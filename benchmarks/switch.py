"""How long a switch takes, step by step, against ranks, sizes of messages, and unexpected bytes.

Runs jobs that communicate without a break, leads each to and fro between two BTLs, or two of UCX's
transports, on this machine, and prints one JSON object: per number of ranks, message size and
direction every switch's report, and the spread of each step's duration (that of `drain` is the
drain time), of the longest time that a rank's own thread spent in it, and of the longest gap of any
rank: the time in which it could do nothing else. With more ranks than processors, the ranks wait
for each other's turns; the time in the rank's thread then includes time in which it did not run.

Unexpected bytes have been sent to every rank, in messages of 4 KiB, and nobody receives them before
the end: with the kind ucp, the first switch has to pull them out of UCX (`first_ms`); later ones
find them kept.

usage: switch.py [--ranks 2,4,8,16] [--sizes 8,65536,1048576] [--unexpected 0] [--cycles N]
                 [--fabric BTL] [--fallback BTL] [--interface NAME] [--kind btl|ucp]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from itertools import product
from pathlib import Path

import msgspec

from jobs import compiled, provenance, spread, ucp_variables, variables
from kawarimi_agent.coordinator import Switch
from kawarimi_agent.ranks import RankServer
from kawarimi_agent.report import SwitchReport
from kawarimi_ompi.build import OpenMpi, find_open_mpi
from kawarimi_ompi.launcher import Choice
from kawarimi_ompi.ucp import UcpChoice

DEADLINE_S = 60.0


async def series(
    server: RankServer,
    open_mpi: OpenMpi,
    binary: Path,
    ranks: int,
    size: int,
    unexpected: int,
    options: argparse.Namespace,
) -> list[SwitchReport]:
    """Run one job, and switch it to and fro."""
    stop = server.path.with_name(f"stop-{ranks}-{size}-{unexpected}")
    command = ["mpirun", "-n", str(ranks), str(binary), str(stop), str(size), str(unexpected)]
    sides = (options.fabric, options.fallback)
    more = {"OMPI_MCA_mpi_yield_when_idle": "1"}
    if options.kind == "ucp":
        given = ucp_variables(command, UcpChoice(*sides, "", server.path), more)
    else:
        choice = Choice(*sides, server.path, options.interface)
        given = variables(command, open_mpi, choice, more)
    process = await asyncio.create_subprocess_exec(*command, env=given)
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
    """Spreads over the switches in one direction; milliseconds."""
    return {
        "first_ms": {step.name: step.duration_s * 1e3 for step in reports[0].steps},
        "duration_ms": spread([report.duration_s * 1e3 for report in reports]),
        "longest_gap_ms": spread(
            [max(rank.longest_gap_s for rank in report.ranks) * 1e3 for report in reports]
        ),
        "steps": {
            step.name: {
                "duration_ms": spread([r.steps[i].duration_s * 1e3 for r in reports]),
                "rank_ms": spread([r.steps[i].rank_s * 1e3 for r in reports]),
            }
            for i, step in enumerate(reports[0].steps)
        },
    }


def numbers(text: str) -> list[int]:
    """Read a list from the command line."""
    return [int(word) for word in text.split(",")]


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run every series."""
    open_mpi = find_open_mpi()
    report = provenance(open_mpi, options)
    with tempfile.TemporaryDirectory() as directory:
        binary = compiled(open_mpi, "exchange", Path(directory))
        server = RankServer(Path(directory) / "ranks.sock")
        await server.start()
        for case in product(*map(numbers, (options.ranks, options.sizes, options.unexpected))):
            reports = await series(server, open_mpi, binary, *case, options)
            report["{} ranks, {} bytes, {} unexpected".format(*case)] = {
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
    parser.add_argument("--ranks", default="2,4,8,16")
    parser.add_argument("--sizes", default="8,65536,1048576", help="in bytes")
    parser.add_argument("--unexpected", default="0", help="in bytes, of each rank")
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--fabric", default="tcp")
    parser.add_argument("--fallback", help="vader, or sm for the kind ucp")
    parser.add_argument("--interface", default="lo")
    parser.add_argument("--kind", default="btl", choices=["btl", "ucp"])
    options = parser.parse_args()
    options.fallback = options.fallback or {"btl": "vader", "ucp": "sm"}[options.kind]
    print(json.dumps(asyncio.run(measure(options)), indent=2))


if __name__ == "__main__":
    main()

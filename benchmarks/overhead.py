"""What the loaded shim costs a job that is not being switched.

Runs the same two-rank program with the component and without it, alternating, on each BTL, and
prints one JSON object: every sample, and per figure the ratios (with over without) of runs next to
each other, with their spread: 1 means no cost. A figure whose quartiles lie on both sides of 1 is
listed as not told apart: this series shows neither a cost nor its absence. No thresholds: a series
is to be compared with another one from the same machine.

On tcp, every message is counted by the shim; on vader, which is neither fabric nor leaves the
machine, none is. On ucx-tcp and ucx-sm, UCX's transports, every call goes through the shim of the
kind ucp; on ucx-rc too, between two emulated guests of the testbed, over soft RoCE (root).

The figure `itself` is the one that a busy machine disturbs least: the calls of one rank, without
the other one.

usage: overhead.py [--repeats N] [--rounds N] [--interface NAME]
                   [--on tcp,vader,ucx-tcp,ucx-sm,ucx-rc]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from jobs import PROGRAMS, compiled, provenance, spread, ucp_variables, variables
from kawarimi_bridge.cli.output import Progress
from kawarimi_ompi.build import OpenMpi, find_open_mpi
from kawarimi_ompi.launcher import Choice
from kawarimi_ompi.ucp import UcpChoice
from kawarimi_testbed.image.build import build_image
from kawarimi_testbed.job import run_job
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import Topology

RUN_DEADLINE_S = 300
PROGRAM = "point_to_point"
ON_RC = {
    "OMPI_MCA_pml": "ucx",
    "OMPI_MCA_pml_ucx_tls": "any",
    "OMPI_MCA_pml_ucx_devices": "any",
    "UCX_TLS": "rc,sm,self",
}
"""What the kind ucp gives a job on rc; without the shim, the job is given it here."""

Samples = dict[str, list[float]]
Run = Callable[[bool], Awaitable[str]]
"""Runs the program once, with the component or without; returns what it prints."""


def figures(printed: str) -> dict[str, float]:
    """Read what the program prints: its figures by name."""
    lines = (line.split() for line in printed.splitlines())
    return {f"{words[0]} {words[1]}": float(words[2]) for words in lines if len(words) == 3}


def variables_for(btl: str, open_mpi: OpenMpi, interface: str, *, loaded: bool) -> dict[str, str]:
    """Make the environment of one run on `btl`, which is the shim's fabric unless it is vader."""
    if btl.startswith("ucx-"):
        transport = btl.removeprefix("ucx-")
        other = "sm" if transport == "tcp" else "tcp"
        return ucp_variables(["mpirun"], UcpChoice(transport, other, ""), {}, loaded=loaded)
    fabric, fallback = ("tcp", "vader") if btl == "tcp" else ("openib", "tcp")
    more = {
        "OMPI_MCA_btl": "tcp,vader,self,openib",
        # Open MPI prefers the more exclusive BTL.
        "OMPI_MCA_btl_tcp_exclusivity": "100000" if btl == "tcp" else "100",
    }
    if not loaded:
        more["OMPI_MCA_hook"] = "^kawarimi"
    return variables(["mpirun"], open_mpi, Choice(fabric, fallback, include=interface), more)


@contextlib.asynccontextmanager
async def here(btl: str, open_mpi: OpenMpi, options: argparse.Namespace) -> AsyncIterator[Run]:
    """Run the program on this machine."""
    with tempfile.TemporaryDirectory() as directory:
        binary = compiled(open_mpi, PROGRAM, Path(directory))

        async def run(loaded: bool) -> str:
            done = await asyncio.to_thread(
                subprocess.run,
                ["mpirun", "-n", "2", str(binary), str(options.rounds)],
                env=variables_for(btl, open_mpi, options.interface, loaded=loaded),
                capture_output=True,
                text=True,
                timeout=RUN_DEADLINE_S,
                check=True,
            )
            return str(done.stdout)

        yield run


@contextlib.asynccontextmanager
async def in_guests(options: argparse.Namespace) -> AsyncIterator[Run]:
    """Run the program between two guests, over UCX's rc."""
    topology = Topology(name="bench", agents=True)
    programs = [PROGRAMS / f"{PROGRAM}.c"]
    async with Testbed(topology, build_image(Progress()), programs=programs) as testbed:

        async def run(loaded: bool) -> str:
            done = await run_job(
                testbed,
                topology.guest_names,
                [PROGRAM, str(options.rounds)],
                kind="ucp" if loaded else "",
                variables={} if loaded else ON_RC,
                deadline_s=RUN_DEADLINE_S,
            )
            return done.stdout

        yield run


def ratios(loaded: Samples, plain: Samples) -> dict[str, dict[str, float]]:
    """Per figure, pair by pair: runs next to each other in time saw the same machine."""
    return {
        name: spread([a / b for a, b in zip(loaded[name], plain[name], strict=True)])
        for name in loaded
    }


async def compare(run: Run, repeats: int) -> dict[str, object]:
    """Run with the component and without, in turn."""
    samples: dict[bool, Samples] = {True: defaultdict(list), False: defaultdict(list)}
    for number in range(repeats):
        # Which one comes first alternates too.
        for loaded in (number % 2 == 0, number % 2 == 1):
            for name, value in figures(await run(loaded)).items():
                samples[loaded][name].append(value)
    found = ratios(samples[True], samples[False])
    return {
        "ratio": found,
        "not told apart": [n for n, r in found.items() if r["q1"] <= 1 <= r["q3"]],
        "loaded": samples[True],
        "plain": samples[False],
    }


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Measure every series."""
    open_mpi = find_open_mpi()
    report = provenance(open_mpi, options)
    for btl in options.on.split(","):
        place = in_guests(options) if btl == "ucx-rc" else here(btl, open_mpi, options)
        async with place as run:
            report[btl] = await compare(run, options.repeats)
    return report


def main() -> None:
    """Measure, and print the series."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--interface", default="lo")
    parser.add_argument("--on", default="tcp,vader,ucx-tcp,ucx-sm")
    print(json.dumps(asyncio.run(measure(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()

"""What the loaded shim costs a job that is not being switched.

Runs the same two-rank program with the component and without it, alternating, on each BTL, and
prints one JSON object: every sample, and per figure the ratios (with over without) of runs next to
each other, with their spread: 1 means no cost. A figure whose quartiles lie on both sides of 1 is
listed as not told apart: this series shows neither a cost nor its absence. No thresholds: a series
is to be compared with another one from the same machine.

On tcp, every message is counted by the shim; on vader, which is neither fabric nor leaves the
machine, none is. On ucx-tcp and ucx-sm, UCX's transports, every call goes through the shim of the
kind ucp.

The figure `itself` is the one that a busy machine disturbs least: the calls of one rank, without
the other one.

usage: overhead.py [--repeats N] [--rounds N] [--interface NAME] [--on tcp,vader,ucx-tcp,ucx-sm]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

from jobs import compiled, provenance, spread, ucp_variables, variables
from kawarimi_ompi.build import OpenMpi, find_open_mpi
from kawarimi_ompi.launcher import Choice
from kawarimi_ompi.ucp import UcpChoice

RUN_DEADLINE_S = 300

Samples = dict[str, list[float]]


def measure(binary: Path, given: dict[str, str], rounds: int) -> dict[str, float]:
    """Run the program once; its figures by name."""
    done = subprocess.run(
        ["mpirun", "-n", "2", str(binary), str(rounds)],
        env=given,
        capture_output=True,
        text=True,
        timeout=RUN_DEADLINE_S,
        check=True,
    )
    lines = (line.split() for line in done.stdout.splitlines())
    return {f"{metric} {size}": float(value) for metric, size, value in lines}


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


def ratios(loaded: Samples, plain: Samples) -> dict[str, dict[str, float]]:
    """Per figure, pair by pair: runs next to each other in time saw the same machine."""
    return {
        name: spread([a / b for a, b in zip(loaded[name], plain[name], strict=True)])
        for name in loaded
    }


def main() -> None:
    """Measure, and print the series."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--interface", default="lo")
    parser.add_argument("--on", default="tcp,vader,ucx-tcp,ucx-sm")
    options = parser.parse_args()
    open_mpi = find_open_mpi()
    report = provenance(open_mpi, options)
    with tempfile.TemporaryDirectory() as directory:
        binary = compiled(open_mpi, "point_to_point", Path(directory))
        for btl in options.on.split(","):
            samples: dict[bool, Samples] = {True: defaultdict(list), False: defaultdict(list)}
            for number in range(options.repeats):
                # Which one comes first alternates too.
                for loaded in (number % 2 == 0, number % 2 == 1):
                    given = variables_for(btl, open_mpi, options.interface, loaded=loaded)
                    for name, value in measure(binary, given, options.rounds).items():
                        samples[loaded][name].append(value)
            found = ratios(samples[True], samples[False])
            report[btl] = {
                "ratio": found,
                "not told apart": [n for n, r in found.items() if r["q1"] <= 1 <= r["q3"]],
                "loaded": samples[True],
                "plain": samples[False],
            }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

"""What the loaded shim costs a job that is not being switched.

Runs the same two-rank program with the component and without it, alternating, on each BTL, and
prints one JSON object: every sample, and per figure the ratios (with over without) of runs next to
each other, as median and quartiles: 1 means no cost. No thresholds: a series is to be compared with
another one from the same machine.

usage: overhead.py [--repeats N] [--rounds N] [--interface NAME]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

from kawarimi_ompi.build import OpenMpi, build, find_open_mpi
from kawarimi_ompi.launcher import Choice, environment

RUN_DEADLINE_S = 300
PROGRAM = Path(__file__).parent / "programs" / "point_to_point.c"

Samples = dict[str, list[float]]


def measure(binary: Path, variables: dict[str, str], rounds: int) -> dict[str, float]:
    """Run the program once; its figures by name."""
    done = subprocess.run(
        ["mpirun", "-n", "2", str(binary), str(rounds)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=RUN_DEADLINE_S,
        check=True,
    )
    lines = (line.split() for line in done.stdout.splitlines())
    return {f"{metric} {size}": float(value) for metric, size, value in lines}


def variables_for(btl: str, open_mpi: OpenMpi, interface: str, *, loaded: bool) -> dict[str, str]:
    """Make the environment of one run on `btl`, which is the shim's fabric if it is tcp."""
    fabric, fallback = ("tcp", "vader") if btl == "tcp" else ("openib", "tcp")
    given = {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_btl": "tcp,vader,self,openib",
        # Open MPI prefers the more exclusive BTL.
        "OMPI_MCA_btl_tcp_exclusivity": "100000" if btl == "tcp" else "100",
    }
    if not loaded:
        given["OMPI_MCA_hook"] = "^kawarimi"
    choice = Choice(fabric, fallback, include=interface)
    return environment(["mpirun"], given, open_mpi, build(open_mpi), choice)


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high}


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
    options = parser.parse_args()
    open_mpi = find_open_mpi()
    report: dict[str, object] = {
        "open_mpi": open_mpi.version,
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "options": vars(options),
    }
    with tempfile.TemporaryDirectory() as directory:
        binary = Path(directory) / "point_to_point"
        subprocess.run([open_mpi.mpicc, "-O2", "-o", binary, PROGRAM], check=True, timeout=120)
        for btl in ("tcp", "vader"):
            samples: dict[bool, Samples] = {True: defaultdict(list), False: defaultdict(list)}
            for number in range(options.repeats):
                # Which one comes first alternates too.
                for loaded in (number % 2 == 0, number % 2 == 1):
                    variables = variables_for(btl, open_mpi, options.interface, loaded=loaded)
                    for name, value in measure(binary, variables, options.rounds).items():
                        samples[loaded][name].append(value)
            report[btl] = {
                "ratio": ratios(samples[True], samples[False]),
                "loaded": samples[True],
                "plain": samples[False],
            }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

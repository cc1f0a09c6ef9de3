"""What the benchmarks of the rank shim share: programs, environments, spreads."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from argparse import Namespace
from pathlib import Path

from kawarimi_ompi.build import OpenMpi, build, build_ucp
from kawarimi_ompi.launcher import Choice, environment, parameters
from kawarimi_ompi.ucp import UcpChoice, launch

_COMPILE_DEADLINE_S = 120
PROGRAMS = Path(__file__).parent / "programs"


def compiled(open_mpi: OpenMpi, program: str, directory: Path) -> Path:
    """Compile one of the benchmarks' programs; returns the binary."""
    assert open_mpi.mpicc is not None
    binary = directory / program
    subprocess.run(
        [open_mpi.mpicc, "-O2", "-o", binary, PROGRAMS / f"{program}.c"],
        check=True,
        timeout=_COMPILE_DEADLINE_S,
    )
    return binary


def _given(more: dict[str, str]) -> dict[str, str]:
    """Make the environment of a job on this machine, however few its processors are."""
    return {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        **more,
    }


def variables(
    command: list[str], open_mpi: OpenMpi, choice: Choice, more: dict[str, str]
) -> dict[str, str]:
    """Make the environment of a switchable job of the kind `btl`."""
    return environment(command, _given(more), open_mpi, build(open_mpi), choice)


def ucp_variables(
    command: list[str], choice: UcpChoice, more: dict[str, str], *, loaded: bool = True
) -> dict[str, str]:
    """Make the environment of a switchable job of the kind `ucp`, or of the same job without it."""
    given = _given(more)
    _, result = launch(command, given, parameters(command, given), build_ucp(), choice)
    if not loaded:
        del result["OMPI_MCA_mca_base_env_list"]
        result["UCX_TLS"] = f"{choice.fabric},self"
    return result


def machine(options: Namespace) -> dict[str, object]:
    """Say where a series was measured, and how."""
    return {
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "load": os.getloadavg(),
        "options": vars(options),
    }


def provenance(open_mpi: OpenMpi, options: Namespace) -> dict[str, object]:
    """Say what a series was measured with."""
    return {"open_mpi": open_mpi.version, **machine(options)}


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles and extremes of at least two samples."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"min": min(values), "q1": low, "median": middle, "q3": high, "max": max(values)}

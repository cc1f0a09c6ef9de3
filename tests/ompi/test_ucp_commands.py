"""`kawarimi run` for the kind `ucp`: which kind is chosen, and what a job is started with."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from harness import Site
from test_commands import KAWARIMI, agent, ask, running, until

from kawarimi_ompi.build import OpenMpi
from kawarimi_ompi.launcher import Kind, choose_kind, parameters
from kawarimi_ompi.ucp import UcpChoice, launch
from kawarimi_wire.errors import ExitCode, PreflightRefused, Slug, UsageError

LIBRARY = Path("/ours/libkawarimi_ucp.so")
ENV_LIST = "OMPI_MCA_mca_base_env_list"


@pytest.mark.parametrize(
    ("line", "named", "ucx", "built", "kind"),
    [
        ("mpirun a.out", (None, None), True, True, Kind.UCP),
        ("mpirun a.out", (None, None), False, True, Kind.BTL),
        ("mpirun a.out", (None, None), True, False, Kind.BTL),
        ("mpirun --mca pml ob1 a.out", (None, None), True, True, Kind.BTL),
        ("mpirun --mca pml ucx a.out", (None, None), True, False, Kind.UCP),
        ("mpirun --mca pml ^ucx a.out", (None, None), True, True, Kind.BTL),
        ("mpirun --mca pml ^cm a.out", (None, None), True, True, Kind.UCP),
        ("mpirun --mca btl tcp,self a.out", (None, None), True, True, Kind.BTL),
        ("mpirun a.out", ("tcp", "vader"), True, True, Kind.BTL),
        ("mpirun a.out", ("rc", "tcp"), True, True, Kind.UCP),
    ],
)
def test_kind_is_chosen_by_what_the_job_would_use(
    line: str, named: tuple[str | None, str | None], ucx: bool, built: bool, kind: Kind
) -> None:
    open_mpi = OpenMpi("4.1.4", "/components", ucx=ucx)
    chosen, why = choose_kind(parameters(line.split(), {}), named, open_mpi, built=built)
    assert chosen is kind
    assert why


def start(
    line: str, variables: dict[str, str], choice: UcpChoice | None = None
) -> tuple[list[str], dict[str, str]]:
    words = line.split()
    return launch(words, variables, parameters(words, variables), LIBRARY, choice or UcpChoice())


def test_ranks_are_given_the_library_and_mpirun_is_not() -> None:
    words, result = start("mpirun -n 2 a.out", {"LD_PRELOAD": "theirs.so"})
    assert words == ["mpirun", "-n", "2", "a.out"]
    exported = dict(pair.split("=", 1) for pair in result[ENV_LIST].split(";"))
    assert exported["LD_PRELOAD"] == f"{LIBRARY}:theirs.so"
    assert exported["KAWARIMI_UCP_FABRIC_TLS"] == "rc,sm,self"
    assert exported["KAWARIMI_UCP_FALLBACK_TLS"] == "tcp,sm,self"
    assert result["LD_PRELOAD"] == "theirs.so"
    assert result["OMPI_MCA_pml"] == "ucx"


def test_what_the_user_exports_is_kept() -> None:
    assert start("mpirun a", {ENV_LIST: "A=1"})[1][ENV_LIST].startswith("A=1;LD_PRELOAD=")
    words, result = start("mpirun -x A=1 a.out", {})
    assert ENV_LIST not in result
    assert words[:3] == ["mpirun", "-x", f"LD_PRELOAD={LIBRARY}"]
    assert words[-3:] == ["-x", "A=1", "a.out"]


@pytest.mark.parametrize(
    ("line", "variables", "name"),
    [
        ("mpirun --mca pml ob1 a", {}, "pml"),
        ("mpirun --mca osc ucx a", {}, "osc"),
        ("mpirun --mca osc ^rdma a", {}, "osc"),
        ("mpirun a", {"UCX_RC_TM_ENABLE": "y"}, "UCX_RC_TM_ENABLE"),
        ("mpirun a", {"UCX_TLS": "rc"}, "UCX_TLS"),
        ("mpirun --mca mca_base_env_list A=1 a", {}, "mca_base_env_list"),
    ],
)
def test_what_cannot_be_switched_is_refused(
    line: str, variables: dict[str, str], name: str
) -> None:
    with pytest.raises(PreflightRefused) as caught:
        start(line, variables)
    assert caught.value.slug is Slug.NOT_SWITCHABLE_LAUNCH
    assert caught.value.facts["parameter"] == name


def test_fabric_and_fallback_differ() -> None:
    with pytest.raises(UsageError):
        start("mpirun a", {}, UcpChoice("tcp", "tcp"))


@pytest.mark.root
@pytest.mark.netns
async def test_a_session(site: Site, program, tmp_path: Path) -> None:
    """Start a job with `kawarimi run`, look at it, and switch it."""
    here = ("--run-directory", str(tmp_path))
    stop = tmp_path / "stop"
    run = [
        *("ip", "netns", "exec", site.namespace, "nice", *KAWARIMI, "run", "--kind", "ucp"),
        *("--fabric", "tcp", "--fallback", "sm", "--agent", str(tmp_path / "ranks.sock")),
        *("--", "mpirun", "--allow-run-as-root", "--oversubscribe"),
        *("-n", "2", str(program("traffic")), str(stop)),
    ]
    variables = {**os.environ, "OMPI_MCA_mpi_yield_when_idle": "1"}
    async with AsyncExitStack() as stack:
        stack.enter_context(agent(tmp_path))
        job = await stack.enter_async_context(running(run, variables))
        listed = await until(
            lambda jobs: bool(isinstance(jobs, list) and jobs and jobs[0]["connected"] == 2),
            *("jobs", *here),
        )
        assert (listed[0]["kind"], listed[0]["refusal"]) == ("ucp", "")
        name = listed[0]["job"]
        for to in ("sm", "tcp", "sm"):
            code, report = await ask("switch", name, "--to", to, *here)
            assert (code, report["changed"]) == (ExitCode.COMPLETED, True)
            code, status = await ask("status", name, *here)
            for rank in status["ranks"]:
                assert [peer["eager"] for peer in rank["peers"]] == [[to]]
        stop.touch()
        assert await job.wait() == 0

"""The command line: hooks, run, agent, jobs, status, switch, as a user types them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import Site

from kawarimi_bridge.cli.main import main
from kawarimi_ompi import build as building
from kawarimi_ompi.build import OpenMpi
from kawarimi_ompi.launcher import Choice, environment, parameters_on_line
from kawarimi_wire.errors import ExitCode, PreflightRefused, Slug, UsageError

Program = Callable[[str], Path]

KAWARIMI = (sys.executable, "-m", "kawarimi_bridge.cli.main")


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_hooks_build_and_info(open_mpi: OpenMpi, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hooks", "build", "--json"]) == ExitCode.COMPLETED
    component = said(capsys)["component"]
    assert Path(component).exists()
    assert main(["hooks", "info", "--json"]) == ExitCode.COMPLETED
    info = said(capsys)
    assert info["usable"] is True
    assert info["component"] == component
    assert info["open_mpi"]["version"] == open_mpi.version


def test_hooks_info_before_building(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["hooks", "info", "--json"]) == ExitCode.COMPLETED
    info = said(capsys)
    assert info["usable"] is False
    assert "hooks build" in info["reason"]
    assert main(["run", "--json-lines", "--", "true"]) == ExitCode.USAGE
    capsys.readouterr()
    assert main(["run", "--", "true"]) == ExitCode.REFUSED
    assert Slug.COMPONENT_MISSING in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        *(["build", "--mpicc", name] for name in ("no-such-mpicc", "gcc", "false")),
        *(["info", "--mpirun", name] for name in ("no-such-mpirun", "gcc", "false")),
    ],
)
def test_no_open_mpi(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hooks", *words, "--json"]) == ExitCode.USAGE
    assert said(capsys)["error"]["slug"] == Slug.OPEN_MPI_MISSING


def test_jobs_run_where_there_is_no_compiler(
    open_mpi: OpenMpi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compute nodes have no mpicc; they run the component that was built elsewhere."""
    component = building.build(open_mpi)
    for name in ("mpirun", "ompi_info", "orted"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    (tmp_path / "env").symlink_to("/usr/bin/env")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError):
        building.find_open_mpi()
    found = building.find_runtime()
    assert (found.version, found.component_path) == (open_mpi.version, open_mpi.component_path)
    assert building.info(found).component == component / building.COMPONENT
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(component, elsewhere)
    assert building.info(found, elsewhere).usable
    ran = subprocess.run(
        [*KAWARIMI, "run", "--component", str(elsewhere), "--", "env"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"OMPI_MCA_mca_base_component_path={open_mpi.component_path}:{elsewhere}" in ran.stdout


def test_another_open_mpi_is_not_built_for(open_mpi: OpenMpi, tmp_path: Path) -> None:
    other = OpenMpi("4.1.5", open_mpi.component_path, open_mpi.mpicc)
    with pytest.raises(PreflightRefused) as caught:
        building.build(other)
    assert caught.value.slug is Slug.OPEN_MPI_UNSUPPORTED
    assert not building.info(other).usable


def launch(line: str, variables: dict[str, str], choice: Choice | None = None) -> dict[str, str]:
    open_mpi = OpenMpi("4.1.4", "/components")
    return environment(line.split(), variables, open_mpi, Path("/ours"), choice or Choice())


def test_launcher_sets_what_the_user_left_open() -> None:
    result = launch("mpirun -n 2 --mca btl_openib_allow_ib 0 a.out", {"OMPI_MCA_btl": "^sm"})
    assert result["OMPI_MCA_pml"] == "ob1"
    assert result["OMPI_MCA_btl"] == "^sm"
    assert "OMPI_MCA_btl_openib_allow_ib" not in result
    assert result["OMPI_MCA_mca_base_component_path"] == "/components:/ours"
    assert "OMPI_MCA_btl_tcp_if_include" not in result


def test_launcher_adds_to_the_users_component_path() -> None:
    given = {"OMPI_MCA_mca_base_component_path": "/elsewhere"}
    assert launch("mpirun a", given)["OMPI_MCA_mca_base_component_path"] == "/elsewhere:/ours"


@pytest.mark.parametrize(
    ("line", "variables", "parameter"),
    [
        ("mpirun --mca pml ucx a.out", {}, "pml"),
        ("mpirun a.out", {"OMPI_MCA_pml": "cm"}, "pml"),
        ("mpirun -mca btl tcp,self a.out", {}, "btl"),
        ("mpirun --mca btl ^tcp a.out", {}, "btl"),
        ("mpirun --mca btl openib,tcp a.out", {}, "btl"),
        ("mpirun --gmca osc rdma a.out", {}, "osc"),
        ("mpirun --mca osc ^ucx a.out", {}, "osc"),
        ("mpirun a.out", {"OMPI_MCA_pml_ob1_use_all_rdma": "1"}, "pml_ob1_use_all_rdma"),
    ],
)
def test_launcher_refuses(line: str, variables: dict[str, str], parameter: str) -> None:
    with pytest.raises(PreflightRefused) as caught:
        launch(line, variables)
    assert caught.value.slug is Slug.NOT_SWITCHABLE_LAUNCH
    assert caught.value.facts["parameter"] == parameter


def test_launcher_refuses_one_btl_for_both() -> None:
    with pytest.raises(UsageError):
        launch("mpirun a", {}, Choice("tcp", "tcp"))


def test_parameters_on_line() -> None:
    line = "mpirun -n 2 --mca a 1 -mca b 2 --gmca c 3 ./mca d 4 --mca"
    assert parameters_on_line(line.split()) == {"a": "1", "b": "2", "c": "3", "": ""}


@contextmanager
def agent(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `kawarimi agent` until the test ends."""
    process = subprocess.Popen([*KAWARIMI, "agent", "--run-directory", str(directory)])
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@asynccontextmanager
async def running(
    command: list[str], variables: dict[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run an mpirun until the test ends."""
    job = await asyncio.create_subprocess_exec(*command, env=variables, start_new_session=True)
    try:
        yield job
    finally:
        if job.returncode is None:
            os.killpg(job.pid, signal.SIGTERM)  # mpirun then ends its ranks
            await asyncio.wait_for(job.wait(), 20)


async def ask(*words: str) -> tuple[int, Any]:
    process = await asyncio.create_subprocess_exec(
        *(*KAWARIMI, *words, "--json"), stdout=subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, json.loads(out)


async def until(holds: Callable[[Any], bool], *words: str, deadline_s: float = 30) -> Any:
    """Ask again and again until the answer is as it should be."""
    async with asyncio.timeout(deadline_s):
        while True:
            _, answer = await ask(*words)
            if holds(answer):
                return answer


@pytest.mark.root
@pytest.mark.netns
async def test_a_session(site: Site, program: Program, tmp_path: Path) -> None:
    """Start a job with `kawarimi run`, look at it, switch it, restart its agent, switch it back."""
    here = ("--run-directory", str(tmp_path))
    code, answer = await ask("jobs", *here)
    assert (code, answer["error"]["slug"]) == (ExitCode.FAILED, Slug.AGENT_UNREACHABLE)
    stop = tmp_path / "stop"
    run = [
        *("ip", "netns", "exec", site.namespace, "nice", *KAWARIMI, "run"),
        *("--fabric", "tcp", "--fallback", "vader", "--agent", str(tmp_path / "ranks.sock")),
        *("--include", site.interface, "--", "mpirun", "--allow-run-as-root", "--oversubscribe"),
        *("-n", "2", str(program("traffic")), str(stop)),
    ]
    variables = {**os.environ, "OMPI_MCA_mpi_yield_when_idle": "1"}
    async with AsyncExitStack() as stack:
        with agent(tmp_path):
            job = await stack.enter_async_context(running(run, variables))
            listed = await until(
                lambda jobs: bool(isinstance(jobs, list) and jobs and jobs[0]["connected"] == 2),
                *("jobs", *here),
            )
            name = listed[0]["job"]
            assert listed[0]["refusal"] == ""
            code, report = await ask("switch", name, "--to", "tcp", *here)
            assert (code, report["changed"]) == (ExitCode.COMPLETED, True)
            code, report = await ask("switch", name, "--to", "tcp", *here)
            assert (code, report["changed"]) == (ExitCode.COMPLETED, False)
            code, status = await ask("status", name, *here)
            assert code == ExitCode.COMPLETED
            for rank in status["ranks"]:
                assert rank["answered"]
                assert [peer["eager"] for peer in rank["peers"]] == [["tcp"]]
            code, answer = await ask("switch", name, "--to", "openib", *here)
            assert (code, answer["error"]["slug"]) == (ExitCode.USAGE, Slug.UNKNOWN_BTL)
            code, answer = await ask("status", "1.1", *here)
            assert (code, answer["error"]["slug"]) == (ExitCode.USAGE, Slug.UNKNOWN_JOB)
        with agent(tmp_path):
            await until(
                lambda jobs: bool(isinstance(jobs, list) and jobs and jobs[0]["connected"] == 2),
                *("jobs", *here),
            )
            code, report = await ask("switch", name, "--to", "vader", *here)
            assert code == ExitCode.COMPLETED
            assert [step["name"] for step in report["steps"]] == [
                "prepare",
                "select",
                "drain",
                "fini",
            ]
            stop.touch()
            assert await asyncio.wait_for(job.wait(), 60) == 0


@pytest.mark.root
@pytest.mark.netns
async def test_a_job_behind_two_agents(site: Site, program: Program, tmp_path: Path) -> None:
    """Each rank dials an agent of its own, as on two machines; one coordinator leads both."""
    here, there = tmp_path / "0", tmp_path / "1"
    stop = tmp_path / "stop"
    of_its_own = (
        f"export OMPI_MCA_hook_kawarimi_agent={tmp_path}/$OMPI_COMM_WORLD_RANK/ranks.sock; "
        f"exec {program('traffic')} {stop}"
    )
    run = [
        *("ip", "netns", "exec", site.namespace, "nice", *KAWARIMI, "run"),
        *("--fabric", "tcp", "--fallback", "vader", "--include", site.interface, "--"),
        *("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", "sh", "-c", of_its_own),
    ]
    variables = {**os.environ, "OMPI_MCA_mpi_yield_when_idle": "1"}
    controls = [word for d in (here, there) for word in ("--run-directory", str(d))]
    async with AsyncExitStack() as stack:
        stack.enter_context(agent(here))
        stack.enter_context(agent(there))
        job = await stack.enter_async_context(running(run, variables))
        for directory in (here, there):
            listed = await until(
                lambda jobs: bool(isinstance(jobs, list) and jobs),
                *("jobs", "--run-directory", str(directory)),
            )
        name = listed[0]["job"]
        code, answer = await ask("switch", name, "--to", "tcp", "--run-directory", str(here))
        assert (code, answer["error"]["slug"]) == (ExitCode.REFUSED, Slug.JOB_INCOMPLETE)
        for to in ("tcp", "vader", "tcp"):
            code, report = await ask("switch", name, "--to", to, *controls)
            assert (code, report["changed"]) == (ExitCode.COMPLETED, True)
            assert [rank["vpid"] for rank in report["ranks"]] == [0, 1]
        stop.touch()
        assert await asyncio.wait_for(job.wait(), 60) == 0


async def test_control_socket_answers_nonsense(tmp_path: Path) -> None:
    with agent(tmp_path):
        path = tmp_path / "control.sock"
        await until(lambda answer: answer == [], "jobs", "--run-directory", str(tmp_path))
        for line in (b"\n", b"{}\n", b'{"ask":"everything"}\n', b"\xff\xfe\n"):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(line)
            answer = json.loads(await asyncio.wait_for(reader.readline(), 10))
            assert answer["failure"]["slug"] == Slug.BAD_USAGE
            writer.close()

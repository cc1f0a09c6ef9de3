"""Jobs and programs that cannot be switched: refused, with the reason, and not disturbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Launcher

from kawarimi_agent.barriers import preflight
from kawarimi_agent.coordinator import Switch
from kawarimi_ompi.protocol import Command, Outcome, State
from kawarimi_wire.errors import ExecutionFailed, KawarimiError, PreflightRefused, Slug, UsageError

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]


@pytest.mark.parametrize(
    ("mode", "variables", "reason"),
    [
        ("multiple", {}, "MPI_THREAD_MULTIPLE"),
        ("", {"OMPI_MCA_btl": "tcp,self"}, "fallback BTL is not in use"),
        ("", {"OMPI_MCA_btl": "vader,self"}, "excluded"),
        ("", {"OMPI_MCA_pml_ob1_use_all_rdma": "1"}, "use_all_rdma"),
        (
            "",
            {"OMPI_MCA_hook_kawarimi_fabric": "nothing", "OMPI_MCA_btl": "^openib,ofi"},
            "no loadable component",
        ),
        ("", {"OMPI_MCA_hook_kawarimi_fallback": "tcp"}, "same BTL"),
    ],
)
async def test_refused_at_preflight(
    launcher: Launcher,
    program: Program,
    mode: str,
    variables: dict[str, str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the launcher would have refused, the ranks refuse too."""
    monkeypatch.setattr("kawarimi_ompi.launcher._check", lambda *_: None)
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, mode, ranks=2, **variables) as job:
        with pytest.raises(PreflightRefused) as caught:
            preflight("test", job.ranks)
        assert caught.value.slug is Slug.JOB_NOT_SWITCHABLE
        assert reason in caught.value.what
        rank = job.ranks[0]
        reply = await rank.call(Command(rank.hello.leave[0].code, 1, 5.0))
        assert reply.outcome is Outcome.REFUSED
        stop.touch()
        assert "OK" in await job.succeed()


async def test_window_of_osc_rdma_is_refused(
    launcher: Launcher, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kawarimi_ompi.launcher._check", lambda *_: None)
    stop = launcher.directory / "stop"
    async with launcher.start(
        program("steady"),
        *(stop, "window"),
        ranks=2,
        fabric="vader",
        fallback="tcp",
        OMPI_MCA_osc="rdma",
    ) as job:
        await job.printed("BEGIN")
        with pytest.raises(ExecutionFailed) as caught:
            await job.switch("tcp")
        assert caught.value.slug is Slug.STEP_REFUSED
        assert "osc/rdma" in caught.value.what
        assert job.states() == {State.ATTACHED}
        stop.touch()
        assert "OK" in await job.succeed()


async def test_jobs_that_are_connected_are_refused(launcher: Launcher, program: Program) -> None:
    """Spawned and spawning job know nothing of each other's addresses; neither is switched."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("spawn"), stop, ranks=2, hello=False) as job:
        await job.printed("CONNECTED")
        assert await launcher.server.wait(lambda: len(launcher.server.ranks) == 3, 30)
        names = [summary.job for summary in launcher.jobs.summaries()]
        assert len(names) == 2
        spawning = next(s.job for s in launcher.jobs.summaries() if s.ranks == 2)
        for to in ("tcp", "vader"):
            with pytest.raises(KawarimiError) as caught:
                await launcher.jobs.switch(spawning, 0, to, deadline_s=10, poke=False)
            assert caught.value.slug is Slug.STEP_REFUSED, caught.value
            assert "another job" in caught.value.what
        stop.touch()
        assert "OK" in await job.succeed()


async def test_job_that_has_parted_from_another_stays_refused(
    launcher: Launcher, program: Program
) -> None:
    """Open MPI keeps the endpoints, on the fabric too, until MPI_Finalize."""
    stop, end = launcher.directory / "stop", launcher.directory / "end"
    async with launcher.start(program("spawn"), stop, end, ranks=2, hello=False) as job:
        await job.printed("CONNECTED")
        assert await launcher.server.wait(lambda: len(launcher.server.ranks) == 3, 30)
        stop.touch()
        await job.printed("DISCONNECTED")
        assert await launcher.server.wait(lambda: len(launcher.server.ranks) == 2, 30)
        states = job.states()
        for to in ("tcp", "vader"):
            with pytest.raises(ExecutionFailed) as caught:
                await job.switch(to)
            assert caught.value.slug is Slug.STEP_REFUSED
            assert "until MPI_Finalize" in caught.value.what
            assert job.states() == states
        end.touch()
        assert "OK" in await job.succeed()


async def test_unknown_btl_and_incomplete_job(launcher: Launcher, program: Program) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, ranks=2) as job:
        with pytest.raises(UsageError) as usage:
            await job.switch("openib")
        assert usage.value.slug is Slug.UNKNOWN_BTL
        with pytest.raises(PreflightRefused) as refused:
            Switch("test", job.ranks[:1], "tcp", deadline_s=5)
        assert refused.value.slug is Slug.JOB_INCOMPLETE
        with pytest.raises(UsageError) as unknown:
            await launcher.jobs.switch("9.9", 0, "tcp", deadline_s=5, poke=False)
        assert unknown.value.slug is Slug.UNKNOWN_JOB
        name = launcher.jobs.summaries()[0].job
        with pytest.raises(PreflightRefused) as foreign:
            await launcher.jobs.switch(name, 12345, "tcp", deadline_s=5, poke=False)
        assert foreign.value.slug is Slug.JOB_NOT_YOURS
        stop.touch()
        await job.succeed()

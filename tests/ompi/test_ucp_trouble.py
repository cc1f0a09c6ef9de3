"""Jobs on PML ucx: switches that are given up, broken off, or impossible."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import agent_dies_in_a_switch
from harness import UCP_STEPS, Job, Launcher, lead, lead_to

from kawarimi_agent.barriers import preflight
from kawarimi_agent.coordinator import Switch
from kawarimi_ompi.protocol import Command, State, Step, StepFlag
from kawarimi_wire.errors import (
    ExecutionFailed,
    NeedsCleanup,
    PreflightRefused,
    Scope,
    Slug,
)

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]


@pytest.mark.parametrize("by_one", [False, True], ids=["by-all", "and-the-next-by-one"])
@pytest.mark.parametrize("last", UCP_STEPS[:-1])
@pytest.mark.parametrize(("way", "to"), [("sm", "sm"), ("sm", "tcp"), ("tcp", "tcp")])
async def test_agent_dies_between_steps(
    launcher: Launcher, program: Program, last: str, by_one: bool, way: str, to: str
) -> None:
    async def half(job: Job) -> None:
        if way == "tcp":
            await job.switch("sm")
        await lead_to(job, way, last)
        if by_one:
            epoch = job.ranks[0].epoch
            following = UCP_STEPS[UCP_STEPS.index(last) + 1]
            taken = job.ranks[0].hello.leave if way == "sm" else job.ranks[0].hello.take
            # Addresses come with a command of the coordinator's only.
            if following != "modex":
                await lead(job.ranks[1:], [following], epoch, taken)

    await agent_dies_in_a_switch(launcher, program("traffic"), half, to, kind="ucp")


async def test_commit_was_under_way_when_its_leader_left(
    launcher: Launcher, program: Program
) -> None:
    """Ctrl-C, say: what the ranks were last known to be is not what they are."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=2, kind="ucp") as job:
        await lead_to(job, "sm", "drain")
        commit = next(step for step in job.ranks[0].hello.leave if step.has(StepFlag.COMMIT))
        command = Command(commit.code, job.ranks[0].epoch, 10.0)
        asked = [asyncio.ensure_future(rank.call(command)) for rank in job.ranks]
        await asyncio.sleep(0)  # by then the commands are sent, and none is answered
        for call in asked:
            call.cancel()
        assert job.states() == {State.HELD}
        await job.switch("tcp")
        assert job.states() == {State.ATTACHED}
        stop.touch()
        assert "OK" in await job.succeed()


async def test_given_up_before_the_commit(launcher: Launcher, program: Program) -> None:
    """Rolled back again and again under traffic: what waited and what was kept goes on in order."""

    async def give_up(step: Step) -> None:
        if step.name == "disconnect":
            raise ExecutionFailed(Slug.INTERNAL, "the test has seen enough", scope=Scope.JOB)

    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=3, kind="ucp") as job:
        for number in range(60):
            with pytest.raises(ExecutionFailed) as caught:
                await job.switch("sm", on_step=give_up)
            assert caught.value.untouched == "the job runs on tcp, as before"
            assert job.states() == {State.ATTACHED}
            if number % 20 == 0:
                await job.switch("sm")
                await job.switch("tcp")
        stop.touch()
        assert "OK" in await job.succeed()


@pytest.mark.parametrize("last", ["init", "modex", "drain", "disconnect", "restore", "enable"])
async def test_rank_killed_in_mid_switch(launcher: Launcher, program: Program, last: str) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=3, kind="ucp") as job:
        await lead_to(job, "sm", last)
        ranks = job.ranks
        os.kill(ranks[1].hello.pid, signal.SIGKILL)
        with pytest.raises((ExecutionFailed, NeedsCleanup)) as caught:
            await Switch("test", ranks, "sm", deadline_s=10).run()
        assert caught.value.slug in (Slug.RANK_GONE, Slug.SWITCH_UNFINISHED)
        assert await job.exit_code() != 0


async def test_more_than_may_be_kept(launcher: Launcher, program: Program) -> None:
    """Given up before anything is closed; once it has been received, there is room again."""
    go = launcher.directory / "go"
    launcher.ucp_kept = 1 << 20
    async with launcher.start(program("pending"), "unexpected", go, ranks=2, kind="ucp") as job:
        await job.printed("WAITING")
        with pytest.raises(ExecutionFailed) as caught:
            await job.switch("sm")
        assert caught.value.slug is Slug.NO_ROOM
        assert caught.value.untouched == "the job runs on tcp, as before"
        assert 0 < caught.value.facts["kept"] <= 1 << 20
        assert job.states() == {State.ATTACHED}
        go.touch()
        assert "OK" in await job.succeed()


async def test_fabric_that_is_not_there(launcher: Launcher, program: Program) -> None:
    """The job begins on the fallback, and stays there undisturbed when it is asked to leave it."""
    stop = launcher.directory / "stop"
    async with launcher.start(
        program("traffic"), stop, ranks=2, kind="ucp", fabric="rc", fallback="tcp"
    ) as job:
        assert job.states() == {State.DETACHED}
        with pytest.raises(ExecutionFailed) as caught:
            await job.switch("rc")
        assert caught.value.slug is Slug.FABRIC_ABSENT
        assert caught.value.facts["step"] == "init"
        assert job.states() == {State.DETACHED}
        stop.touch()
        assert "OK" in await job.succeed()


async def test_fabric_that_goes_during_the_switch(launcher: Launcher, program: Program) -> None:
    """Past the commit there is no way back: the ranks meet on the fallback, and the job runs."""

    def links(state: str) -> None:
        for device in ("kwt0", "lo"):
            command = ["ip", "-n", launcher.site.namespace, "link", "set", device, state]
            subprocess.run(command, check=True, timeout=10)

    async def unplug(step: Step) -> None:
        if step.name == "init":
            links("down")

    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=2, kind="ucp") as job:
        await job.switch("sm")
        try:
            with pytest.raises(ExecutionFailed) as caught:
                await job.switch("tcp", on_step=unplug)
        finally:
            links("up")
        assert caught.value.slug is Slug.FABRIC_ABSENT
        assert caught.value.untouched == "the job runs on sm, as before"
        assert job.states() == {State.DETACHED}
        await job.switch("tcp")
        stop.touch()
        assert "OK" in await job.succeed()


async def test_thread_multiple_is_refused(launcher: Launcher, program: Program) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, "multiple", ranks=2, kind="ucp") as job:
        with pytest.raises(PreflightRefused) as caught:
            preflight("test", job.ranks)
        assert caught.value.slug is Slug.JOB_NOT_SWITCHABLE
        assert "MPI_THREAD_MULTIPLE" in caught.value.what
        stop.touch()
        assert "OK" in await job.succeed()


async def test_window_of_osc_ucx_is_refused(
    launcher: Launcher, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kawarimi_ompi.ucp._check", lambda *_: None)
    stop = launcher.directory / "stop"
    async with launcher.start(
        program("steady"), stop, "window", ranks=2, kind="ucp", OMPI_MCA_osc="ucx"
    ) as job:
        await job.printed("BEGIN")
        with pytest.raises(ExecutionFailed) as caught:
            await job.switch("sm")
        assert caught.value.slug is Slug.STEP_REFUSED
        assert "osc/ucx" in caught.value.what
        assert job.states() == {State.ATTACHED}
        stop.touch()
        assert "OK" in await job.succeed()


async def test_jobs_that_are_connected_are_refused(launcher: Launcher, program: Program) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("spawn"), stop, ranks=2, kind="ucp", hello=False) as job:
        await job.printed("CONNECTED")
        assert await launcher.server.wait(lambda: len(launcher.server.ranks) == 3, 30)
        spawning = [rank for rank in job.ranks if rank.hello.ranks == 2]
        with pytest.raises(ExecutionFailed) as caught:
            await Switch("test", spawning, "sm", deadline_s=10).run()
        assert caught.value.slug is Slug.STEP_REFUSED
        assert "another job" in caught.value.what
        stop.touch()
        assert "OK" in await job.succeed()

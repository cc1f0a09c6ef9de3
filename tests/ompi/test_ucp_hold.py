"""Jobs on PML ucx that are held still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import held_ranks_make_no_progress, hold
from harness import Job, Launcher

from kawarimi_ompi.protocol import Code, Command, Component, State

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]


async def counted(job: Job) -> list[Component]:
    replies = await asyncio.gather(
        *(rank.call(Command(Code.STATUS, 0, 10.0)) for rank in job.ranks)
    )
    return [component for reply in replies for component in reply.components]


async def test_held_ranks_make_no_progress(launcher: Launcher, program: Program) -> None:
    await held_ranks_make_no_progress(launcher, program("steady"), kind="ucp")


@pytest.mark.parametrize("side", ["tcp", "sm"])
async def test_nothing_is_under_way_while_held(
    launcher: Launcher, program: Program, side: str
) -> None:
    """The ranks are parked in the middle of whatever they do."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=3, kind="ucp") as job:
        await job.switch(side)
        for _ in range(20):
            holding = hold(job)
            await holding.begin()
            parts = await counted(job)
            assert {part.name for part in parts} == {side}
            assert sum(p.sent or 0 for p in parts) == sum(p.received or 0 for p in parts) > 0
            assert {part.outstanding for part in parts} == {0}
            assert await counted(job) == parts
            await holding.resume()
            await asyncio.sleep(0.02)  # let the program have some of the time
        stop.touch()
        assert "OK" in await job.succeed()


async def test_switches_of_a_held_job(launcher: Launcher, program: Program) -> None:
    """As a frozen migration uses it: held from RELEASE to RESELECT."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=3, kind="ucp") as job:
        for _ in range(5):
            await job.switch("sm")
            holding = hold(job)
            await holding.begin()
            await job.switch("tcp")
            await job.switch("sm")
            await job.switch("tcp")
            await holding.renew()
            await holding.resume()
        assert job.states() == {State.ATTACHED}
        stop.touch()
        assert "OK" in await job.succeed()


async def test_hold_ends_when_its_agent_is_dead(launcher: Launcher, program: Program) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=2, kind="ucp") as job:
        await hold(job, lease_s=1.5).begin()
        assert job.states() == {State.HELD}
        await launcher.server.stop()
        stop.touch()
        assert "OK" in await job.succeed()

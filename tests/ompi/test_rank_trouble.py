"""Ranks that do not come to a safe point, die or leave, and devices that are not there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import LEAVE, Launcher, attached, epoch_after, lead

from kawarimi_agent.coordinator import Switch
from kawarimi_ompi.protocol import State
from kawarimi_wire.errors import ExecutionFailed, KawarimiError, Slug

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]


KINDS = pytest.mark.parametrize(("kind", "fallback"), [("btl", "vader"), ("ucp", "sm")])


@KINDS
async def test_rank_that_does_not_come_is_left_alone(
    launcher: Launcher, program: Program, kind: str, fallback: str
) -> None:
    """The deadline holds, the others are let go, and once the rank is back a switch succeeds."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, "compute", 8, ranks=2, kind=kind) as job:
        await job.printed("COMPUTING")
        clock = asyncio.get_running_loop().time
        began = clock()
        with pytest.raises(ExecutionFailed) as caught:
            await job.switch(fallback, deadline_s=1)
        assert clock() - began < 7
        assert caught.value.slug is Slug.RANK_NOT_REACHED
        assert caught.value.facts["ranks"] == ["rank 0"]
        await job.switch(fallback, deadline_s=20)
        assert job.states() == {State.DETACHED}
        await job.switch("tcp")
        assert job.states() == {State.ATTACHED}
        stop.touch()
        assert "OK" in await job.succeed()


@KINDS
async def test_rank_that_computes_can_be_poked(
    launcher: Launcher, program: Program, kind: str, fallback: str
) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, "compute", 6, ranks=2, kind=kind) as job:
        await job.printed("COMPUTING")
        await job.switch("tcp", deadline_s=4, poke=True)
        for to in (fallback, "tcp", fallback):
            report = await job.switch(to, deadline_s=4, poke=True)
            assert report.changed
        stop.touch()
        assert "OK" in await job.succeed()


async def test_rank_in_a_system_call_is_not_interrupted(
    launcher: Launcher, program: Program
) -> None:
    stop = launcher.directory / "stop"
    # It may take seconds to be told that it sleeps: once a switch came after four of them.
    async with launcher.start(program("steady"), stop, "sleep", 8, ranks=2) as job:
        await job.printed("COMPUTING")
        with pytest.raises(ExecutionFailed):
            await job.switch("vader", deadline_s=0.5, poke=True)
        stop.touch()
        assert "OK" in await job.succeed()


@pytest.mark.parametrize("after", ["prepare", "select", "drain"])
async def test_rank_killed_in_mid_phase(launcher: Launcher, program: Program, after: str) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=3) as job:
        await attached(job)
        await lead(job.ranks, LEAVE[: LEAVE.index(after) + 1], epoch_after(job.ranks))
        ranks = job.ranks
        os.kill(ranks[1].hello.pid, signal.SIGKILL)
        with pytest.raises(ExecutionFailed) as caught:
            await Switch("test", ranks, "vader", deadline_s=10).run()
        assert caught.value.slug is Slug.RANK_GONE
        assert await job.exit_code() != 0


@KINDS
async def test_finalize_during_a_switch(
    launcher: Launcher, program: Program, kind: str, fallback: str
) -> None:
    """A job may end at any moment of a switch; the switch may fail then, the job does not."""
    for number in range(7):
        stop = launcher.directory / f"stop{number}"
        async with launcher.start(program("steady"), stop, ranks=2, kind=kind) as job:
            await attached(job)
            stop.touch()
            await asyncio.sleep(number * 0.002)  # a moment further on in each turn
            with contextlib.suppress(KawarimiError, IndexError):  # the ranks have left
                await job.switch(fallback, deadline_s=5)
            assert "OK" in await job.succeed()


async def test_fabric_without_device_and_then_with_another_address(
    launcher: Launcher, program: Program
) -> None:
    def address(verb: str, value: str) -> None:
        command = ["ip", "-n", launcher.site.namespace, "addr", verb, value, "dev", "kwt0"]
        subprocess.run(command, check=True, timeout=10)

    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=2) as job:
        await attached(job)
        await job.switch("vader")
        address("del", "10.99.0.1/24")
        try:
            with pytest.raises(ExecutionFailed) as caught:
                await job.switch("tcp")
            assert caught.value.slug is Slug.FABRIC_ABSENT
            assert job.states() == {State.DETACHED}
            address("add", "10.99.0.77/24")
            await job.switch("tcp")
            await job.switch("vader")
            address("del", "10.99.0.77/24")
        finally:
            address("add", "10.99.0.1/24")
        stop.touch()
        assert "OK" in await job.succeed()

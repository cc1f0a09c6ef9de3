"""Jobs on PML ucx: the other transport is made before it is needed, and nothing is left of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import hold, rounds
from harness import (
    UCP_STEPS,
    Job,
    Launcher,
    descriptors,
    is_mapped,
    lead_to,
    other_ucx,
    threads,
)

from kawarimi_ompi.protocol import State, Step
from kawarimi_wire.errors import ExecutionFailed, Scope, Slug

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]

SHARED_MEMORY = "ucx_shm_posix"


def pids(job: Job) -> list[int]:
    return [rank.hello.pid for rank in job.ranks]


def held_by(processes: list[int]) -> list[tuple[int, int, bool]]:
    """What each rank holds of the system's."""
    return [(descriptors(pid), threads(pid), is_mapped(pid, SHARED_MEMORY)) for pid in processes]


def held(job: Job) -> list[tuple[int, int, bool]]:
    return held_by(pids(job))


async def both_sides_seen(job: Job) -> dict[str, list[tuple[int, int, bool]]]:
    """Switch to and fro, and see what the ranks hold on each side; ends on tcp."""
    result = {}
    for side in ("sm", "tcp"):
        await job.switch(side)
        result[side] = held(job)
    return result


async def test_only_one_transport_is_left_of_a_switch(launcher: Launcher, program: Program) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=3, kind="ucp") as job:
        first = await both_sides_seen(job)
        assert {mapped for _, _, mapped in first["sm"]} == {True}
        assert {mapped for _, _, mapped in first["tcp"]} == {False}
        for _ in range(5):
            assert await both_sides_seen(job) == first
        stop.touch()
        assert "OK" in await job.succeed()


@pytest.mark.parametrize("side", ["tcp", "sm"])
async def test_program_goes_on_meanwhile(launcher: Launcher, program: Program, side: str) -> None:
    """Also when nobody leads it any further; the next operation unmakes what was made."""
    stop, counts = launcher.directory / "stop", launcher.directory / "counts"
    other, prepared, settled = {
        "tcp": ("sm", State.PREPARED, State.ATTACHED),
        "sm": ("tcp", State.OPENED, State.DETACHED),
    }[side]
    async with launcher.start(program("steady"), stop, "count", counts, ranks=3, kind="ucp") as job:
        usual = (await both_sides_seen(job))[side]
        await job.switch(side)
        await lead_to(job, other, "modex")
        assert job.states() == {prepared}
        assert held(job) != usual
        before = rounds(counts)
        async with asyncio.timeout(10):
            while any(  # noqa: ASYNC110 (shared memory has no event)
                now < then + 100 for now, then in zip(rounds(counts), before, strict=True)
            ):
                await asyncio.sleep(0.01)
        await launcher.server.stop()
        await launcher.server.start()
        await job.hello()
        assert job.states() == {prepared}
        await job.switch(side)
        assert job.states() == {settled}
        assert held(job) == usual
        stop.touch()
        assert "OK" in await job.succeed()


async def test_it_is_connected_however_long_its_endpoints_take(
    launcher: Launcher, program: Program, tmp_path: Path
) -> None:
    """Otherwise the held ranks would do it themselves: 0.3 s with rc, in a guest."""
    stop = launcher.directory / "stop"
    slow = str(other_ucx(tmp_path, "KW_SLOW"))
    async with launcher.start(
        program("traffic"), stop, ranks=2, kind="ucp", LD_PRELOAD=slow
    ) as job:
        await job.switch("sm")
        said = job.text()
        await job.switch("tcp")
        flushed = job.text().removeprefix(said).count
        assert flushed("FLUSHED 1") >= len(job.ranks)
        assert flushed("FLUSHED 0") == 0
        stop.touch()
        assert "OK" in await job.succeed()


async def test_transport_that_does_not_reach_a_peer(
    launcher: Launcher, program: Program, tmp_path: Path
) -> None:
    """The switch is given up before the commit: messages would wait there for ever."""
    stop = launcher.directory / "stop"
    deaf = str(other_ucx(tmp_path, "KW_DEAF"))
    async with launcher.start(
        program("traffic"), stop, ranks=2, kind="ucp", fabric="sm", fallback="tcp", LD_PRELOAD=deaf
    ) as job:
        usual = held(job)
        with pytest.raises(ExecutionFailed) as caught:
            await job.switch("tcp", deadline_s=4)
        assert caught.value.slug is Slug.STEP_REFUSED
        assert "step hold: rank" in caught.value.what
        assert "cannot be reached" in caught.value.what
        assert caught.value.untouched == "the job runs on sm, as before"
        assert held(job) == usual
        stop.touch()
        assert "OK" in await job.succeed()


@pytest.mark.parametrize("at", UCP_STEPS[1:5])
async def test_nothing_is_left_of_what_was_given_up(
    launcher: Launcher, program: Program, at: str
) -> None:
    async def give_up(step: Step) -> None:
        if step.name == at:
            raise ExecutionFailed(Slug.INTERNAL, "the test has seen enough", scope=Scope.JOB)

    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=3, kind="ucp") as job:
        usual = await both_sides_seen(job)
        for side, other in (("tcp", "sm"), ("sm", "tcp")):
            await job.switch(side)
            for _ in range(5):
                with pytest.raises(ExecutionFailed) as caught:
                    await job.switch(other, on_step=give_up)
                assert caught.value.untouched == f"the job runs on {side}, as before"
                assert held(job) == usual[side]
        stop.touch()
        text = await job.succeed()
    assert "OK" in text
    assert "UCX" not in text  # as its warnings begin: the endpoints go without a farewell


@pytest.mark.parametrize("at", UCP_STEPS[5:])
async def test_given_up_past_the_commit(launcher: Launcher, program: Program, at: str) -> None:
    """From there on the ranks meet on the fallback, whichever way they went."""

    async def give_up(step: Step) -> None:
        if step.name == at and not given_up:
            given_up.append(step)
            raise ExecutionFailed(Slug.INTERNAL, "the test has seen enough", scope=Scope.JOB)

    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=3, kind="ucp") as job:
        usual = (await both_sides_seen(job))["sm"]
        for _ in range(3):
            given_up: list[Step] = []
            assert (await job.switch("sm", on_step=give_up)).changed
            assert job.states() == {State.DETACHED}
            assert held(job) == usual
            given_up.clear()
            with pytest.raises(ExecutionFailed) as caught:
                await job.switch("tcp", on_step=give_up)
            assert caught.value.untouched == "the job runs on sm, as before"
            assert job.states() == {State.DETACHED}
            assert held(job) == usual
            await job.switch("tcp")
        stop.touch()
        assert "OK" in await job.succeed()


async def test_lease_that_ends_takes_it_along(launcher: Launcher, program: Program) -> None:
    """A held job, half way to the other side, whose agent dies."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=2, kind="ucp") as job:
        usual = (await both_sides_seen(job))["tcp"]
        await hold(job, lease_s=2).begin()
        await lead_to(job, "sm", "drain")
        assert job.states() == {State.HELD}
        assert held(job) != usual
        ranks = pids(job)
        await launcher.server.stop()
        # But for the connection to the agent.
        expected = [(files - 1, *rest) for files, *rest in usual]
        async with asyncio.timeout(10):
            while held_by(ranks) != expected:  # noqa: ASYNC110 (processes have no event for it)
                await asyncio.sleep(0.05)
        await launcher.server.start()
        await job.hello()
        assert job.states() == {State.ATTACHED}
        stop.touch()
        assert "OK" in await job.succeed()

"""Cases that jobs of both kinds of shim have to pass."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from harness import Job, Launcher

from kawarimi_agent.hold import Hold
from kawarimi_ompi.protocol import State
from kawarimi_wire.errors import OutcomeUnknown, Slug


async def switch_under_traffic(
    launcher: Launcher,
    traffic: Path,
    fabric: str,
    fallback: str,
    ranks: int,
    switches: int,
    *,
    look: Callable[[Job], None] = lambda _: None,
    **kind: str,
) -> None:
    """Switch at random moments under verified traffic, and see it end well.

    :param look: at the job, when it has begun.
    """
    stop = launcher.directory / "stop"
    moments = random.Random(ranks)
    async with launcher.start(
        traffic, stop, ranks, ranks=ranks, fabric=fabric, fallback=fallback, **kind
    ) as job:
        look(job)
        await job.switch(fabric)
        for number in range(switches):
            await asyncio.sleep(moments.random() * 0.002)  # a random moment, not a condition
            await job.switch((fallback, fabric)[number % 2])
        stop.touch()
        assert "OK" in await job.succeed()


async def agent_dies_in_a_switch(
    launcher: Launcher,
    traffic: Path,
    half: Callable[[Job], Awaitable[None]],
    to: str,
    **kind: str,
) -> None:
    """Whatever was half done, the agent that comes back finds out and brings it to one state.

    :param half: leads a job that is on its fabric through a part of a switch.
    :param to: the side that the next agent is asked for.
    """
    stop = launcher.directory / "stop"
    async with launcher.start(traffic, stop, ranks=2, **kind) as job:
        hello = job.ranks[0].hello
        await job.switch(hello.fabric)
        await half(job)
        await launcher.server.stop()
        await launcher.server.start()
        await job.hello()
        await job.switch(to)
        assert job.states() == {State.ATTACHED if to == hello.fabric else State.DETACHED}
        await job.switch(hello.fallback)
        await job.switch(hello.fabric)
        stop.touch()
        assert "OK" in await job.succeed()


def hold(job: Job, *, lease_s: float = 60.0, deadline_s: float = 30.0) -> Hold:
    """Make a hold of all ranks of a job, not begun."""
    return Hold("test", job.ranks, lease_s=lease_s, deadline_s=deadline_s)


def rounds(path: Path) -> list[int]:
    """Return how far each rank of the program `steady` has come."""
    return [count for (count,) in struct.iter_unpack("=Q", path.read_bytes())]


async def held_ranks_make_no_progress(launcher: Launcher, steady: Path, **options: str) -> None:
    """See held ranks stand still, go on when they may, and a hold that is over be lost."""
    stop, counts = launcher.directory / "stop", launcher.directory / "counts"
    async with launcher.start(steady, stop, "count", counts, ranks=3, **options) as job:
        if "fallback" in options:
            await job.switch(options["fallback"])
        holding = hold(job)
        report = await holding.begin()
        assert [step.name for step in report.steps] == ["park", "quiesce"]
        before = rounds(counts)
        await asyncio.sleep(0.3)  # time that the ranks must not use
        await holding.renew()
        assert rounds(counts) == before
        await holding.resume()
        await holding.resume()
        async with asyncio.timeout(10):
            while any(  # noqa: ASYNC110 (shared memory has no event)
                now <= then for now, then in zip(rounds(counts), before, strict=True)
            ):
                await asyncio.sleep(0.01)
        with pytest.raises(OutcomeUnknown) as caught:
            await holding.renew()
        assert caught.value.slug is Slug.HOLD_LOST
        await holding.resume()
        stop.touch()
        assert "OK" in await job.succeed()

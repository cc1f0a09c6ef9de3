"""What a job must not accumulate: memory, descriptors, threads, mappings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Job, Launcher, anonymous_kb, descriptors, is_mapped, threads

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]

CYCLES = 500
WARM_UP = 50
GROWTH_KB = 1500
"""Open MPI's own free lists and malloc's arenas still settle after the warm-up."""


def holdings(job: Job) -> list[tuple[int, int]]:
    return [(descriptors(rank.hello.pid), threads(rank.hello.pid)) for rank in job.ranks]


async def test_nothing_of_the_fabric_is_left_after_leaving_it(
    launcher: Launcher, program: Program
) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, ranks=2) as job:
        await job.switch("tcp")
        await job.switch("vader")
        away = holdings(job)
        assert not any(is_mapped(rank.hello.pid, "mca_btl_tcp.so") for rank in job.ranks)
        await job.switch("tcp")
        assert all(is_mapped(rank.hello.pid, "mca_btl_tcp.so") for rank in job.ranks)
        assert all(here > gone for here, gone in zip(holdings(job), away, strict=True))
        await job.switch("vader")
        assert holdings(job) == away
        stop.touch()
        assert "OK" in await job.succeed()


async def test_many_cycles_are_bounded(launcher: Launcher, program: Program) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, ranks=2) as job:
        for _ in range(WARM_UP):
            await job.switch("tcp")
            await job.switch("vader")
        pids = [rank.hello.pid for rank in job.ranks]
        held, memory = holdings(job), [anonymous_kb(pid) for pid in pids]
        for _ in range(CYCLES - WARM_UP):
            await job.switch("tcp")
            await job.switch("vader")
        grown = [anonymous_kb(pid) - before for pid, before in zip(pids, memory, strict=True)]
        assert holdings(job) == held
        assert max(grown) < GROWTH_KB, grown
        print(f"growth in {CYCLES - WARM_UP} cycles: {grown} KiB")
        stop.touch()
        assert "OK" in await job.succeed()

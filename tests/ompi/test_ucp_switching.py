"""Jobs on PML ucx: exchanges of UCX's worker under verified traffic."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Launcher

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]

SWITCHES = int(os.environ.get("KAWARIMI_SWITCHES", "200"))
"""Of two ranks, for each pair below; `make soak` asks for 2,000."""

PAIRS = [pytest.param("tcp", "sm", id="tcp"), pytest.param("sm", "tcp", id="sm")]


async def switch_under_traffic(
    launcher: Launcher, program: Program, fabric: str, fallback: str, ranks: int, switches: int
) -> None:
    stop = launcher.directory / "stop"
    moments = random.Random(ranks)
    async with launcher.start(
        program("traffic"), stop, ranks, ranks=ranks, kind="ucp", fabric=fabric, fallback=fallback
    ) as job:
        for number in range(switches):
            await asyncio.sleep(moments.random() * 0.02)  # a random moment, not a condition
            await job.switch((fallback, fabric)[number % 2])
        stop.touch()
        assert "OK" in await job.succeed()


@pytest.mark.parametrize(("fabric", "fallback"), PAIRS)
async def test_two_ranks(launcher: Launcher, program: Program, fabric: str, fallback: str) -> None:
    await switch_under_traffic(launcher, program, fabric, fallback, ranks=2, switches=SWITCHES)


@pytest.mark.parametrize(("ranks", "switches"), [(4, 40), (8, 12)])
@pytest.mark.parametrize(("fabric", "fallback"), PAIRS)
async def test_more_ranks(
    launcher: Launcher, program: Program, fabric: str, fallback: str, ranks: int, switches: int
) -> None:
    await switch_under_traffic(launcher, program, fabric, fallback, ranks, switches)

"""Switches under verified traffic, and messages that are held across them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import switch_under_traffic
from harness import Launcher

from kawarimi_ompi.build import OpenMpi, build
from kawarimi_ompi.protocol import State
from kawarimi_wire.errors import KawarimiError

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]

SWITCHES = int(os.environ.get("KAWARIMI_SWITCHES", "120"))
"""Of two ranks, for each pair below; `make soak` asks for 2,000."""

HANGS_S = 10.0
"""What is not over by then hangs: the same takes two or three seconds where nothing is missing."""

PAIRS = [pytest.param("tcp", "vader", id="tcp"), pytest.param("vader", "tcp", id="vader")]
"""Fabric and fallback. tcp does PUT, and vader does GET: both of ob1's RDMA protocols cross."""


@pytest.mark.parametrize(("fabric", "fallback"), PAIRS)
async def test_two_ranks(launcher: Launcher, program: Program, fabric: str, fallback: str) -> None:
    await switch_under_traffic(
        launcher, program("traffic"), fabric, fallback, ranks=2, switches=SWITCHES
    )


@pytest.mark.parametrize(("ranks", "switches"), [(3, 60), (4, 60), (8, 20)])
@pytest.mark.parametrize(("fabric", "fallback"), PAIRS)
async def test_more_ranks(
    launcher: Launcher, program: Program, fabric: str, fallback: str, ranks: int, switches: int
) -> None:
    await switch_under_traffic(launcher, program("traffic"), fabric, fallback, ranks, switches)


async def hold_across_detach(
    launcher: Launcher, program: Program, kind: str, fabric: str, fallback: str, cycles: int = 1
) -> None:
    """Let messages wait unmatched while the fabric is left, and taken and left again."""
    go = launcher.directory / "go"
    async with launcher.start(
        program("held"), kind, go, ranks=2, fabric=fabric, fallback=fallback, hello=True
    ) as job:
        await job.switch(fabric)
        await job.printed("WAITING")
        await job.switch(fallback)
        for _ in range(cycles - 1):
            await job.switch(fabric)
            await job.switch(fallback)
        assert job.states() == {State.DETACHED}
        go.touch()
        await job.exit_code(8)
        assert "OK" in job.text()


@pytest.mark.parametrize("kind", ["contiguous", "strided", "mprobe", "ssend", "order", "many"])
@pytest.mark.parametrize("cycles", [1, 2])
async def test_held_across_detach_of_vader(
    launcher: Launcher, program: Program, kind: str, cycles: int
) -> None:
    """The sender's RGET carries keys for a fabric that is gone when the receive is posted."""
    await hold_across_detach(launcher, program, kind, "vader", "tcp", cycles)


@pytest.mark.parametrize("kind", ["contiguous", "mprobe", "ssend", "order"])
async def test_held_across_detach_of_tcp(launcher: Launcher, program: Program, kind: str) -> None:
    await hold_across_detach(launcher, program, kind, "tcp", "vader")


@pytest.mark.parametrize(
    "flags",
    [("-DKW_ABLATE_REWRITE", "-DKW_ABLATE_KICK"), ("-DKW_ABLATE_REWRITE",)],
    ids=["no-rewrite-no-retry", "no-rewrite"],
)
async def test_without_rewrite_the_held_message_is_lost(
    launcher: Launcher, program: Program, open_mpi: OpenMpi, flags: tuple[str, ...]
) -> None:
    """The control: the same test must fail without what makes it pass."""
    launcher.site = launcher.site._replace(component=build(open_mpi, flags))
    with pytest.raises((TimeoutError, AssertionError)):
        await hold_across_detach(launcher, program, "contiguous", "vader", "tcp")


async def test_without_the_superseded_btl_in_the_rdma_array_the_job_dies(
    launcher: Launcher, program: Program, open_mpi: OpenMpi
) -> None:
    """The control for RDMA that is under way while its BTL is being left or taken."""
    component = build(open_mpi, ("-DKW_ABLATE_RDMA",))
    launcher.site = launcher.site._replace(component=component)
    with pytest.raises((KawarimiError, AssertionError, TimeoutError)):
        async with asyncio.timeout(HANGS_S):
            await switch_under_traffic(
                launcher, program("traffic"), "vader", "tcp", ranks=4, switches=120
            )

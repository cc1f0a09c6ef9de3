"""Jobs on PML ucx: requests that are pending while UCX's worker is exchanged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Launcher, anonymous_kb

from kawarimi_ompi.build import build_ucp
from kawarimi_ompi.protocol import State
from kawarimi_wire.errors import KawarimiError

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]

KINDS = (
    "posted", "unexpected", "probed", "cancelled", "freed", "persistent", "strided", "truncated",
    "synchronous",
)  # fmt: skip


async def wait_across(
    launcher: Launcher, program: Program, kind: str, cycles: int, name: str = "pending"
) -> str:
    """Let something be pending while the fabric is left, and taken and left again."""
    go = launcher.directory / "go"
    # What is freed is overwritten, so that a use of it does not pass by luck.
    async with launcher.start(
        program(name), kind, go, ranks=2, kind="ucp", MALLOC_PERTURB_="165"
    ) as job:
        await job.printed("WAITING")
        for _ in range(cycles - 1):
            await job.switch("sm")
            await job.switch("tcp")
        if cycles > 0:
            await job.switch("sm")
            assert job.states() == {State.DETACHED}
        go.touch()
        await job.exit_code(10)
        assert "OK" in job.text(), job.text()
        return job.text()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cycles", [1, 2])
async def test_pending(launcher: Launcher, program: Program, kind: str, cycles: int) -> None:
    text = await wait_across(launcher, program, kind, cycles)
    if kind == "synchronous":
        assert "COMPLETE 1" in text


@pytest.mark.parametrize("kind", KINDS)
async def test_pending_without_a_switch(launcher: Launcher, program: Program, kind: str) -> None:
    """What the same programs see when nothing happens: the same, but for synchronous sends."""
    text = await wait_across(launcher, program, kind, cycles=0)
    if kind == "synchronous":
        assert "COMPLETE 0" in text


@pytest.mark.parametrize("kind", ["contiguous", "strided", "mprobe", "ssend", "order", "many"])
async def test_held(launcher: Launcher, program: Program, kind: str) -> None:
    """The messages of the tests of the kind `btl`."""
    await wait_across(launcher, program, kind, 2, name="held")


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ("ORDER", "posted"),
        ("ORDER", "unexpected"),
        ("LOSS", "unexpected"),
        ("PIN", "freed"),
    ],
)
async def test_without_it_the_pending_requests_go_wrong(
    launcher: Launcher, program: Program, flag: str, kind: str
) -> None:
    """The controls: the same tests must fail without what makes them pass."""
    library = build_ucp(flags=(f"-DKW_ABLATE_{flag}", "-Wno-error"))
    launcher.site = launcher.site._replace(library=library)
    with pytest.raises((TimeoutError, AssertionError, KawarimiError)):
        await wait_across(launcher, program, kind, 1)


SETTLED = 60
"""Switches, after which the allocator has what two transports at once need."""


async def growth_kb(launcher: Launcher, program: Program, switches: int) -> int:
    """How much a rank grows through switches, with receives of a strided type pending.

    Twice what it grows in the half in which it grows less: what leaks does so in both, while the
    heap's highest point may come late.
    """
    go = launcher.directory / "go"
    # A transport is made and unmade in other threads: each may have another arena of the heap. And
    # how much of the heap's end is given back depends on what lies there at the moment.
    heap = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    async with launcher.start(
        program("pending"), "strided", go, ranks=2, kind="ucp", **heap
    ) as job:
        await job.printed("WAITING")
        sizes = []
        for number in range(SETTLED + switches):
            await job.switch(("sm", "tcp")[number % 2])
            sizes.append(max(anonymous_kb(rank.hello.pid) for rank in job.ranks))
        go.touch()
        assert "OK" in await job.succeed()
    first, middle, last = (sizes[SETTLED - 1 + at] for at in (0, switches // 2, switches))
    return 2 * min(middle - first, last - middle)


SWITCHES = int(os.environ.get("KAWARIMI_SWITCHES", "200"))


async def test_memory_does_not_grow(launcher: Launcher, program: Program) -> None:
    assert await growth_kb(launcher, program, SWITCHES) < 128


async def test_without_dropping_what_ucx_forgets_memory_grows(
    launcher: Launcher, program: Program
) -> None:
    """The control, and what a receive of a strided type costs that is cancelled."""
    library = build_ucp(flags=("-DKW_ABLATE_DROP", "-Wno-error"))
    launcher.site = launcher.site._replace(library=library)
    assert await growth_kb(launcher, program, 100) > 400

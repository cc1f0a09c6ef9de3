"""Jobs on PML ucx: exchanges of UCX's worker under verified traffic."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import switch_under_traffic
from harness import Launcher

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]

SOAK = os.environ.get("KAWARIMI_SWITCHES")
"""How many switches `make soak` asks for, of two ranks, for each pair below."""

PAIRS = [pytest.param("tcp", "sm", id="tcp"), pytest.param("sm", "tcp", id="sm")]


@pytest.mark.parametrize(
    ("fabric", "fallback", "switches"), [("tcp", "sm", 1000), ("sm", "tcp", 200)], ids=["tcp", "sm"]
)
async def test_two_ranks(
    launcher: Launcher, program: Program, fabric: str, fallback: str, switches: int
) -> None:
    await switch_under_traffic(
        launcher, program("traffic"), fabric, fallback, 2, int(SOAK or switches), kind="ucp"
    )


@pytest.mark.parametrize(("ranks", "switches"), [(4, 40), (8, 12)])
@pytest.mark.parametrize(("fabric", "fallback"), PAIRS)
async def test_more_ranks(
    launcher: Launcher, program: Program, fabric: str, fallback: str, ranks: int, switches: int
) -> None:
    await switch_under_traffic(
        launcher, program("traffic"), fabric, fallback, ranks, switches, kind="ucp"
    )

"""Samples of traffic: a guest that stands still, or has just begun to run, is let be."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from kawarimi_bridge.operation import sampler
from kawarimi_bridge.operation.diary import Diary
from kawarimi_bridge.operations import OperationFolder
from kawarimi_wire.messages import AskTraffic, Traffic
from kawarimi_wire.phases import Mode

SAMPLE_S = 0.01
ALONE_S = 0.3
ENOUGH = 5


class Guest:
    """Answers, and knows when it was asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self._came = asyncio.Condition()

    async def ask(self, request: Any, answer_type: Any, deadline_s: float) -> Any:
        assert isinstance(request, AskTraffic)
        async with self._came:
            self.asked.append(time.monotonic())
            self._came.notify_all()
        return Traffic(len(self.asked), 0)

    async def more(self) -> None:
        """Wait until it has been asked some times more."""
        enough = len(self.asked) + ENOUGH
        async with asyncio.timeout(10), self._came:
            await self._came.wait_for(lambda: len(self.asked) >= enough)


@pytest.fixture
def diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Diary:
    monkeypatch.setattr(sampler, "SAMPLE_S", SAMPLE_S)
    monkeypatch.setattr(sampler, "ALONE_S", ALONE_S)
    return Diary(OperationFolder(tmp_path / "op"), "migrate", Mode.LIVE, [], lambda _: None)


@pytest.mark.parametrize("pauses", [1, 2])
async def test_a_guest_that_moves_is_let_be(diary: Diary, pauses: int) -> None:
    moves, stays = Guest(), Guest()
    async with sampler.sampled({"vm1": moves, "vm2": stays}, ["vm1", "vm2"], diary) as sampling:
        await moves.more()
        for _ in range(pauses):  # the second one while the first resumption is still to come
            sampling.pause("vm1")
            await stays.more()
            asked, resumed = len(moves.asked), time.monotonic()
            sampling.resume("vm1")
            sampling.resume("vm1")
        await moves.more()
    assert moves.asked[asked] - resumed >= ALONE_S
    meanwhile = [at for at in stays.asked if resumed < at < resumed + ALONE_S]
    assert len(meanwhile) >= ENOUGH

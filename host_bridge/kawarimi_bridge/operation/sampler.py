"""Samples the guests' traffic while an operation runs, for its report."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

from kawarimi_bridge.operation.diary import Diary
from kawarimi_wire.errors import KawarimiError
from kawarimi_wire.messages import ANSWER_MARGIN_S, AskTraffic, Channel, Traffic

SAMPLE_S = 0.25
"""Between two samples of a guest: short beside a migration, long beside what an answer costs."""


@contextlib.asynccontextmanager
async def sampled(
    agents: Mapping[str, Channel], guests: Sequence[str], diary: Diary
) -> AsyncIterator[None]:
    """Sample the guests' traffic for as long as the context lasts.

    A guest that does not answer, as one that stands still for a moment, leaves a gap.
    """
    tasks = [asyncio.create_task(_sample(agents[guest], guest, diary)) for guest in guests]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _sample(agent: Channel, guest: str, diary: Diary) -> None:
    while True:
        with contextlib.suppress(KawarimiError):
            traffic = await agent.ask(AskTraffic(), Traffic, ANSWER_MARGIN_S)
            diary.sample(guest, traffic.ethernet, traffic.fabric)
        await asyncio.sleep(SAMPLE_S)

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
ALONE_S = 1.0
"""How long a guest that has stood still is left to its program: its caches are cold, and what waits
for an answer of ours there does not compute. (Emulated, where code has to be translated again, the
median of the program's stall was 0.78 s with samples then and 0.59 s without, in 8 moves each.)"""


class Sampler:
    """Samples guests until it is told to pause; a guest that does not answer leaves a gap."""

    def __init__(self, agents: Mapping[str, Channel], guests: Sequence[str], diary: Diary) -> None:
        self._agents = agents
        self._diary = diary
        self._awake = {guest: asyncio.Event() for guest in guests}
        self._waking: dict[str, asyncio.TimerHandle] = {}
        for awake in self._awake.values():
            awake.set()

    async def run(self, guest: str) -> None:
        """Sample a guest until this is cancelled."""
        while True:
            await self._awake[guest].wait()
            with contextlib.suppress(KawarimiError):
                traffic = await self._agents[guest].ask(AskTraffic(), Traffic, ANSWER_MARGIN_S)
                self._diary.sample(guest, traffic.ethernet, traffic.fabric)
            await asyncio.sleep(SAMPLE_S)

    def pause(self, guest: str) -> None:
        """Ask a guest that stands still nothing more. Idempotent, as is `resume`."""
        self._awake[guest].clear()
        if waking := self._waking.pop(guest, None):
            waking.cancel()

    def resume(self, guest: str) -> None:
        """Ask a guest again, after it has had a while to itself."""
        if not self._awake[guest].is_set() and guest not in self._waking:
            loop = asyncio.get_running_loop()
            self._waking[guest] = loop.call_later(ALONE_S, self._awake[guest].set)


@contextlib.asynccontextmanager
async def sampled(
    agents: Mapping[str, Channel], guests: Sequence[str], diary: Diary
) -> AsyncIterator[Sampler]:
    """Sample the guests' traffic for as long as the context lasts."""
    sampler = Sampler(agents, guests, diary)
    tasks = [asyncio.create_task(sampler.run(guest)) for guest in guests]
    try:
        yield sampler
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

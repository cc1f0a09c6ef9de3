"""The frozen mode: jobs held still, from when they have left their fabric until they have it again.

See `kawarimi_agent.hold`: a hold is a lease, which is renewed here, so that nothing stays parked
whatever becomes of the bridge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kawarimi_agent.hold import Hold
from kawarimi_bridge.operation.diary import Diary
from kawarimi_bridge.operation.plan import Job
from kawarimi_bridge.together import all_of
from kawarimi_wire.errors import KawarimiError

_LEASE_S = 60.0
_RENEW_S = 15.0


class Freezer:
    """Holds jobs; `thaw` it whatever happens."""

    def __init__(self, diary: Diary, *, deadline_s: float, poke: bool) -> None:
        self._diary = diary
        self._deadline_s = deadline_s
        self._poke = poke
        self._holds: list[Hold] = []
        self._renewing: asyncio.Task[None] | None = None

    async def freeze(self, jobs: Sequence[Job]) -> None:
        """Park every rank of these jobs, and see nothing under way between them.

        :raise KawarimiError: a job could not be held; thaw the others.
        """

        async def hold(job: Job) -> None:
            ranks = await job.ranks()
            limits = {"lease_s": _LEASE_S, "deadline_s": self._deadline_s}
            held = Hold(job.name, ranks, poke=self._poke, **limits)
            self._holds.append(held)
            report = await held.begin()
            self._diary.note("held", job=job.name, took_s=report.duration_s)

        await all_of(hold(job) for job in jobs)
        self._renewing = asyncio.create_task(self._renew())

    async def thaw(self) -> None:
        """Let every rank go; one that does not answer lets go by itself. Idempotent."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            self._renewing = None
        for held in self._holds:
            try:
                await held.resume()
                self._diary.note("let go", job=held.job)
            except KawarimiError as error:
                self._diary.note("not let go", job=held.job, error=error.as_dict())
        self._holds.clear()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            for held in self._holds:
                try:
                    await held.renew()
                except KawarimiError as error:
                    self._diary.note("no longer held", job=held.job, error=error.as_dict())

"""Jobs leave their fabric, and take one again: the phases that the ranks take part in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from kawarimi_agent.coordinator import Switch
from kawarimi_bridge.operation.diary import Diary
from kawarimi_bridge.operation.plan import Job
from kawarimi_bridge.together import all_of
from kawarimi_ompi.protocol import Step, StepFlag
from kawarimi_wire.errors import ExecutionFailed, Scope, Slug
from kawarimi_wire.phases import Phase

_LEAVING = (Phase.PREPARE, Phase.DRAIN, Phase.RELEASE)


class _Gate:
    """Lets all jobs into a phase at once, when each of them has done the one before.

    So that none has let go of the device (which has no quick way back) before all are known to be
    drained. The steps of a shim are told apart by what it says of them, not by their names: the
    first prepares, the one that commits releases, what lies between drains.
    """

    def __init__(self, jobs: int, diary: Diary) -> None:
        self._diary = diary
        self._barriers = {phase: asyncio.Barrier(jobs) for phase in _LEAVING}
        self._reached: dict[str, Phase] = {}
        self._running = contextlib.ExitStack()

    async def enter(self, job: str, step: Step) -> None:
        """Wait until all jobs are ready for the phase that a step belongs to.

        :raise ExecutionFailed: `step-refused` where another job has failed.
        """
        if step.has(StepFlag.COMMIT):
            phase = Phase.RELEASE
        else:
            phase = Phase.DRAIN if job in self._reached else Phase.PREPARE
        if self._reached.get(job) is phase:
            return
        try:
            if await self._barriers[phase].wait() == 0:
                self._running.close()
                self._running.enter_context(self._diary.phase(phase))
        except asyncio.BrokenBarrierError as error:
            raise ExecutionFailed(
                Slug.STEP_REFUSED,
                f"Job {job} goes no further than {phase}: another job has failed.",
                scope=Scope.JOB,
            ) from error
        self._reached[job] = phase

    async def break_(self) -> None:
        """Let nobody into any further phase."""
        for barrier in self._barriers.values():
            await barrier.abort()

    def __enter__(self) -> _Gate:
        return self

    def __exit__(self, *error: object) -> None:
        self._running.__exit__(*error)  # type: ignore[arg-type]


async def leave_fabric(jobs: Sequence[Job], diary: Diary, *, deadline_s: float, poke: bool) -> None:
    """Bring every job to its fallback, side by side; no rank holds a device when this returns.

    :raise KawarimiError: the first job's that failed. Each job is on its fabric again or on its
        fallback: ask, or take the fabric for all.
    """
    with _Gate(len(jobs), diary) as gate:

        async def leave(job: Job) -> None:
            switch = Switch(
                job.name,
                await job.ranks(),
                job.fallback,
                deadline_s=deadline_s,
                poke=poke,
                on_step=lambda step: gate.enter(job.name, step),
            )
            try:
                diary.switched(await switch.run())
            except BaseException:
                await gate.break_()
                raise

        await all_of(leave(job) for job in jobs)


async def take_fabric(jobs: Sequence[Job], diary: Diary, *, deadline_s: float, poke: bool) -> None:
    """Bring every job to its fabric, side by side.

    :raise KawarimiError: the first job's that failed; it runs on its fallback.
    """

    async def take(job: Job) -> None:
        switch = Switch(job.name, await job.ranks(), job.fabric, deadline_s=deadline_s, poke=poke)
        diary.switched(await switch.run())

    await all_of(take(job) for job in jobs)

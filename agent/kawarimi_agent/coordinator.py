"""Leads the ranks of one job through the steps of leaving a fabric, or of taking one.

The steps, their order and how each has to be run come from the ranks' hello; every step is a
barrier by that name (`kawarimi_agent.barriers`): the next one is not begun before every rank has
answered. There is one way back, ABORT, and one step after which it no longer leads back: the one
marked COMMIT. When some ranks have passed that and others have not, the only way is forward: the
others are asked again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from kawarimi_agent.barriers import Operation, Ranks
from kawarimi_agent.report import RankFigures, SwitchReport
from kawarimi_ompi.protocol import Code, State, Step, StepFlag
from kawarimi_wire.errors import (
    KawarimiError,
    NeedsCleanup,
    OutcomeUnknown,
    Scope,
    Slug,
    UsageError,
)


class Switch(Operation):
    """Leave the fabric, or take it.

    :param to: the fabric's or the fallback's name.
    :param deadline_s: for everything before the way back; the way back has its own.
    :param poke: wake ranks that compute outside MPI by a signal.
    :param on_step: awaited before each step is begun; what it raises ends the switch like a step
        that failed.
    :raise PreflightRefused: these ranks are not a whole job that can be switched.
    :raise UsageError: the job knows no such BTL.
    """

    def __init__(
        self,
        job: str,
        ranks: Ranks,
        to: str,
        *,
        deadline_s: float,
        poke: bool = False,
        on_step: Callable[[Step], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(job, ranks, deadline_s=deadline_s, poke=poke)
        hello = ranks[0].hello
        if to not in (hello.fabric, hello.fallback):
            raise UsageError(
                Slug.UNKNOWN_BTL,
                f"job {job} knows no BTL {to!r}: its fabric is {hello.fabric}, its fallback "
                f"{hello.fallback}",
                untouched="the job runs on as before",
                scope=Scope.JOB,
            )
        self.to = to
        self._steps = hello.take if to == hello.fabric else hello.leave
        self._goal = State.ATTACHED if to == hello.fabric else State.DETACHED
        self._committing = False
        self._on_step = on_step

    async def run(self) -> SwitchReport:
        """Bring the job to the goal.

        :raise ExecutionFailed: it is back where it was, or on the fallback if it was on its way to
            the fabric; the job runs.
        :raise OutcomeUnknown: likewise, but for ranks that did not answer; the error names them.
        :raise NeedsCleanup: some ranks have passed the commit and others cannot be brought to it.
        """
        await self._converge()
        if all(rank.state is self._goal for rank in self._ranks):
            return self._report(changed=bool(self._records))
        try:
            for step in self._steps:
                if self._on_step:
                    await self._on_step(step)
                self._committing = step.has(StepFlag.COMMIT)
                await self._step(step)
        except KawarimiError as error:
            if self._committing and any(rank.state is self._goal for rank in self._ranks):
                raise await self._forward(error) from error
            raise await self._back(error) from error
        return self._report(changed=True)

    async def _converge(self) -> None:
        """Bring ranks that an earlier, broken-off operation left apart to one state."""
        states = {rank.state for rank in self._ranks}
        if states in ({State.ATTACHED}, {State.DETACHED}):
            return
        hello = self._ranks[0].hello
        for steps, before, after in (
            (hello.leave, State.DRAINING, State.DETACHED),
            (hello.take, State.CONNECTED, State.ATTACHED),
        ):
            if states == {before, after}:
                commit = next(step for step in steps if step.has(StepFlag.COMMIT))
                await self._barrier(f"converge by {commit.name}", self._command(commit.code))
                return
        await self._barrier("converge by abort", self._command(Code.ABORT))

    async def _back(self, error: KawarimiError) -> KawarimiError:
        """Undo everything; the error to raise."""
        started = time.monotonic()
        unanswered = await self._ask_all(Code.ABORT)
        self._record("abort", started, [], waves=1)
        hello = self._ranks[0].hello
        on = hello.fabric if self._goal is State.DETACHED else hello.fallback
        if not unanswered:
            error.untouched = f"the job runs on {on}, as before"
            return error
        return OutcomeUnknown(
            error.slug,
            error.what,
            untouched=f"the other ranks run on {on}, as before",
            hint=f"{', '.join(unanswered)} will follow at the next safe point; ask with "
            f"'kawarimi status {self.job}'",
            scope=error.scope,
            facts={**error.facts, "unanswered": unanswered},
        )

    async def _forward(self, error: KawarimiError) -> KawarimiError:
        """Bring the rest over the commit; the error to raise, if that fails too."""
        commit = next(step for step in self._steps if step.has(StepFlag.COMMIT))
        started = time.monotonic()
        unanswered = await self._ask_all(commit.code)
        self._record(f"{commit.name} again", started, [], waves=1)
        return NeedsCleanup(
            Slug.SWITCH_UNFINISHED,
            f"step {commit.name} is done in some ranks and not in others: {error.what}",
            untouched="the job runs; every rank can reach every other on the fallback",
            hint=f"run 'kawarimi switch {self.job} --to {self.to}' again",
            scope=Scope.JOB,
            facts={**error.facts, "unanswered": unanswered},
        )

    def _report(self, *, changed: bool) -> SwitchReport:
        return SwitchReport(
            job=self.job,
            to=self.to,
            changed=changed,
            epoch=self.epoch if changed else self.epoch - 1,
            duration_s=time.monotonic() - self._began,
            steps=tuple(self._records),
            ranks=tuple(
                RankFigures(
                    vpid=vpid,
                    stall_s=reply.epoch_stall_total_ns / 1e9,
                    longest_gap_s=reply.epoch_stall_longest_ns / 1e9,
                )
                for vpid, reply in sorted(self._replies.items())
            ),
        )

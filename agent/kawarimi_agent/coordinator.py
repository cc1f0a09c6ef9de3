"""Leads the ranks of one job through the steps of leaving a fabric, or of taking one.

The steps, their order and how each has to be run come from the ranks' hello; every step is a
barrier by that name (`kawarimi_agent.barriers`): the next one is not begun before every rank has
answered. There is one way back, ABORT, and one step after which it no longer leads back: the one
marked COMMIT. When a rank has passed that, the only way is forward:

- where the commit is the last step, the ranks that have not done it are asked again;
- where steps follow it, its ranks are between two transports meanwhile (state CROSSING). They meet
  on the fallback, which every rank can open: by the steps of leaving the fabric, from the first one
  on. Such steps may be repeated, in whatever state a broken-off operation left each rank.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

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

FORWARD_DEADLINE_S = 10.0
"""How long to wait at least for the way to the fallback, beyond the operation's own deadline."""


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
        self._before = hello.fallback if to == hello.fabric else hello.fabric
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
            await self._run(self._steps)
        except KawarimiError as error:
            if not self._committing or not await self._has_passed():
                raise await self._back(error) from error
            if await self._forward(error):
                return self._report(changed=True)
            error.untouched = f"the job runs on {self._before}, as before"
            raise
        return self._report(changed=True)

    async def _run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if self._on_step:
                await self._on_step(step)
            self._committing = self._committing or step.has(StepFlag.COMMIT)
            await self._step(step)

    async def _has_passed(self) -> bool:
        """Whether a rank has passed the commit. One that did not answer is asked first."""
        await self._ask_all(Code.STATUS)
        return any(rank.state in (self._goal, State.CROSSING) for rank in self._ranks)

    async def _converge(self) -> None:
        """Bring ranks that an earlier, broken-off operation left apart to one state."""
        settled = ({State.ATTACHED}, {State.DETACHED})
        if {rank.state for rank in self._ranks} in settled:
            return
        # It may have left a command under way; a rank that answers has seen that one through.
        await self._ask_all(Code.STATUS)
        states = {rank.state for rank in self._ranks}
        if states in settled or State.CROSSING in states:
            return
        hello = self._ranks[0].hello
        for steps, before, after in (
            (hello.leave, State.DRAINING, State.DETACHED),
            (hello.take, State.CONNECTED, State.ATTACHED),
        ):
            if states == {before, after}:
                commit = _from_commit(steps)[0]
                await self._barrier(f"converge by {commit.name}", self._command(commit.code))
                return
        await self._barrier("converge by abort", self._command(Code.ABORT))

    async def _back(self, error: KawarimiError) -> KawarimiError:
        """Undo everything; the error to raise."""
        started = time.monotonic()
        unanswered = await self._ask_all(Code.ABORT)
        self._record("abort", started, [], waves=1)
        on = self._before
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

    async def _forward(self, error: KawarimiError) -> bool:
        """Bring every rank to the end, or to the fallback; whether that is where it was to go.

        :raise NeedsCleanup: that fails too.
        """
        rest = _from_commit(self._steps)
        if len(rest) == 1:
            started = time.monotonic()
            unanswered = await self._ask_all(rest[0].code)
            self._record(f"{rest[0].name} again", started, [], waves=1)
            raise self._unfinished(
                error, "every rank can reach every other on the fallback", unanswered
            )
        self._ends = time.monotonic() + max(self._deadline_s, FORWARD_DEADLINE_S)
        try:
            for step in self._ranks[0].hello.leave:
                await self._step(step)
        except KawarimiError as second:
            states = {rank.name: rank.state.name.lower() for rank in self._ranks}
            raise self._unfinished(
                second, "messages wait until the job has a transport again", states
            ) from error
        return self._goal is State.DETACHED

    def _unfinished(self, error: KawarimiError, untouched: str, unanswered: object) -> NeedsCleanup:
        commit = _from_commit(self._steps)[0]
        return NeedsCleanup(
            Slug.SWITCH_UNFINISHED,
            f"step {commit.name} is done in some ranks and the switch is not: {error.what}",
            untouched=f"the job runs; {untouched}",
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


def _from_commit(steps: Sequence[Step]) -> Sequence[Step]:
    first = next(number for number, step in enumerate(steps) if step.has(StepFlag.COMMIT))
    return steps[first:]

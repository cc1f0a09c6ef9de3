"""Leads the ranks of one job through the steps of leaving a fabric, or of taking one.

The steps, their order and how each has to be run come from the ranks' hello; every step is a
barrier by that name: the next one is not begun before every rank has answered. There is one way
back, ABORT, and one step after which it no longer leads back: the one marked COMMIT. When some
ranks have passed that and others have not, the only way is forward: the others are asked again.

Draining ends after two equal waves in which the job's sums of sent and received messages agree
and nothing is outstanding anywhere. One wave is not enough: the ranks answer at different moments,
and a message may be counted as received by one that answers late and not yet as sent by one that
answered early. Between two waves with the same counts nothing was sent or received at all.
(Mattern, 1987, "Algorithms for distributed termination detection", the four-counter method.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from kawarimi_agent.ranks import RankGoneError, RankSilentError
from kawarimi_agent.report import RankFigures, StepRecord, SwitchReport
from kawarimi_ompi.protocol import (
    Blob,
    Code,
    CommandFlag,
    Hello,
    Outcome,
    Reply,
    State,
    Step,
    StepFlag,
)
from kawarimi_wire.errors import (
    ExecutionFailed,
    KawarimiError,
    NeedsCleanup,
    OutcomeUnknown,
    PreflightRefused,
    Scope,
    Slug,
    UsageError,
)

ABORT_DEADLINE_S = 5.0
"""How long to wait for the way back, beyond the operation's own deadline."""

ABORT_LIFETIME_S = 3600.0
"""How long an ABORT stays valid in a rank that does not come to its safe point."""

WAVE_PAUSE_S = (0.0005, 0.02)
"""Pause between waves of a step, the first and the longest: the ranks need time to progress."""


class SwitchableRank(Protocol):
    """One rank, on this machine or behind another agent."""

    hello: Hello
    state: State
    epoch: int

    @property
    def name(self) -> str:
        """The rank's name, for people."""

    async def call(
        self,
        code: int,
        *,
        epoch: int,
        deadline_s: float,
        flags: CommandFlag = ...,
        blobs: tuple[Blob, ...] = (),
        expires_s: float | None = None,
    ) -> Reply:
        """Send one command; see `kawarimi_agent.ranks.Rank.call`."""


Ranks = Sequence[SwitchableRank]


def preflight(job: str, ranks: Ranks) -> None:
    """Check that these ranks are a whole job that can be switched; touches nothing.

    :raise PreflightRefused: it is not; the error names the ranks and their reasons.
    """
    hello = ranks[0].hello
    missing = hello.ranks - len({rank.hello.vpid for rank in ranks})
    if missing:
        raise _refused(
            Slug.JOB_INCOMPLETE,
            f"{missing} of job {job}'s {hello.ranks} ranks have not said hello",
            "wait until all have left MPI_Init, and check that all were started by kawarimi run",
        )
    refusals = {rank.name: rank.hello.refusal for rank in ranks if rank.hello.refusal}
    if refusals:
        name, reason = next(iter(refusals.items()))
        raise _refused(
            Slug.JOB_NOT_SWITCHABLE, f"job {job} cannot be switched: {name}: {reason}", "", refusals
        )
    kinds = {(r.hello.kind, r.hello.fabric, r.hello.fallback, r.hello.leave) for r in ranks}
    if len(kinds) > 1:
        raise _refused(
            Slug.JOB_NOT_SWITCHABLE,
            f"the ranks of job {job} do not agree on their kind, fabric and fallback",
            "start every rank with the same environment",
        )


def _refused(
    slug: Slug, what: str, hint: str, facts: dict[str, str] | None = None
) -> PreflightRefused:
    return PreflightRefused(
        slug,
        what,
        untouched="the job runs on as before",
        hint=hint,
        scope=Scope.JOB,
        facts=dict(facts or {}),
    )


class Switch:
    """One operation on one job: leave the fabric, or take it.

    :param to: the fabric's or the fallback's name.
    :param deadline_s: for everything before the way back; the way back has its own.
    :param poke: wake ranks that compute outside MPI by a signal.
    :param on_step: awaited before each step is begun; what it raises ends the switch like a step
        that failed.
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
        preflight(job, ranks)
        hello = ranks[0].hello
        if to not in (hello.fabric, hello.fallback):
            raise UsageError(
                Slug.UNKNOWN_BTL,
                f"job {job} knows no BTL {to!r}: its fabric is {hello.fabric}, its fallback "
                f"{hello.fallback}",
                untouched="the job runs on as before",
                scope=Scope.JOB,
            )
        self.job = job
        self.to = to
        self.epoch = max(rank.epoch for rank in ranks) + 1
        self._ranks = list(ranks)
        self._steps = hello.take if to == hello.fabric else hello.leave
        self._goal = State.ATTACHED if to == hello.fabric else State.DETACHED
        self._flags = CommandFlag.POKE if poke else CommandFlag(0)
        self._began = time.monotonic()
        self._ends = self._began + deadline_s
        self._deadline_s = deadline_s
        self._records: list[StepRecord] = []
        self._replies: dict[int, Reply] = {}
        self._gathered: tuple[Blob, ...] = ()
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

    def _command(
        self, code: int, blobs: tuple[Blob, ...] = ()
    ) -> Callable[[SwitchableRank], Awaitable[Reply]]:
        def send(rank: SwitchableRank) -> Awaitable[Reply]:
            return rank.call(
                code, epoch=self.epoch, deadline_s=self._left(), flags=self._flags, blobs=blobs
            )

        return send

    def _left(self) -> float:
        return max(self._ends - time.monotonic(), 0.001)

    async def _step(self, step: Step) -> None:
        blobs = self._gathered if step.has(StepFlag.SCATTER) else ()
        self._committing = step.has(StepFlag.COMMIT)
        send = self._command(step.code, blobs)
        if step.has(StepFlag.WAVES):
            await self._waves(step, send)
            return
        replies = await self._barrier(step.name, send)
        if step.has(StepFlag.GATHER):
            self._gathered = tuple(blob for reply in replies for blob in reply.blobs)

    async def _barrier(
        self, name: str, send: Callable[[SwitchableRank], Awaitable[Reply]]
    ) -> list[Reply]:
        """Ask every rank, and wait for all answers.

        :raise KawarimiError: the first thing that went wrong, the gravest first.
        """
        started = time.monotonic()
        results = await asyncio.gather(
            *(send(rank) for rank in self._ranks), return_exceptions=True
        )
        replies = [result for result in results if isinstance(result, Reply)]
        self._record(name, started, replies, waves=1)
        self._raise_failures(name, results)
        for rank, reply in zip(self._ranks, replies, strict=True):
            self._replies[rank.hello.vpid] = reply
        return replies

    def _record(self, name: str, started: float, replies: list[Reply], *, waves: int) -> None:
        self._records.append(
            StepRecord(
                name=name,
                started_s=started - self._began,
                duration_s=time.monotonic() - started,
                rank_s=max((reply.duration_ns for reply in replies), default=0) / 1e9,
                waves=waves,
            )
        )

    def _raise_failures(self, step: str, results: Sequence[Reply | BaseException]) -> None:
        gone, silent, refused = [], [], {}
        for rank, result in zip(self._ranks, results, strict=True):
            if isinstance(result, RankGoneError):
                gone.append(rank.name)
            elif isinstance(result, RankSilentError):
                silent.append(rank.name)
            elif isinstance(result, BaseException):
                raise result
            elif result.outcome is Outcome.EXPIRED:
                silent.append(rank.name)
            elif result.outcome is not Outcome.OK:
                refused[rank.name] = result
        facts: dict[str, object] = {"step": step, "ranks": gone or silent or list(refused)}
        if gone:
            raise ExecutionFailed(
                Slug.RANK_GONE,
                f"{gone[0]} went away in step {step}",
                hint="look whether the job still runs",
                scope=Scope.JOB,
                facts=facts,
            )
        if silent:
            raise ExecutionFailed(
                Slug.RANK_NOT_REACHED,
                f"{silent[0]} did not come to a safe point within {self._deadline_s:g} s "
                f"(step {step})",
                hint="a rank that computes for long outside MPI needs --deadline or --poke",
                scope=Scope.RANK,
                facts=facts,
            )
        if refused:
            name, reply = next(iter(refused.items()))
            absent = reply.outcome is Outcome.NO_DEVICE
            raise ExecutionFailed(
                Slug.FABRIC_ABSENT if absent else Slug.STEP_REFUSED,
                f"{name}, step {step}: {reply.text or reply.outcome.name.lower()}",
                hint="plug the device, or wait until its port is active" if absent else "",
                scope=Scope.DEVICE if absent else Scope.JOB,
                facts={**facts, "outcome": reply.outcome.name.lower()},
            )

    async def _waves(self, step: Step, send: Callable[[SwitchableRank], Awaitable[Reply]]) -> None:
        """Repeat a step until two equal waves balance.

        :raise ExecutionFailed: they did not by the deadline; the facts hold every rank's counters.
        """
        started = time.monotonic()
        pause, longest = WAVE_PAUSE_S
        before: list[tuple[int, int]] | None = None
        waves, replies = 0, list[Reply]()
        while time.monotonic() < self._ends:
            before_len = len(self._records)
            replies = await self._barrier(step.name, send)
            del self._records[before_len:]
            waves += 1
            counts = [(reply.sent, reply.received) for reply in replies]
            quiet = not any(reply.outstanding or reply.pending for reply in replies)
            balanced = sum(sent for sent, _ in counts) == sum(got for _, got in counts)
            if quiet and balanced and counts == before:
                self._record(step.name, started, replies, waves=waves)
                return
            before = counts if quiet and balanced else None
            await asyncio.sleep(0 if before else pause)
            pause = min(2 * pause, longest)
        self._record(step.name, started, replies, waves=waves)
        raise ExecutionFailed(
            Slug.DRAIN_TIMEOUT,
            f"the fabric did not become quiet within {self._deadline_s:g} s",
            hint="the job may be communicating through a stuck peer or a lossy fabric; try again",
            scope=Scope.JOB,
            facts={
                rank.name: {
                    "sent": reply.sent,
                    "received": reply.received,
                    "outstanding": reply.outstanding,
                    "pending": reply.pending,
                }
                for rank, reply in zip(self._ranks, replies, strict=False)
            },
        )

    async def _ask_all(self, code: int) -> list[str]:
        """Send one command to every rank, outside the operation's deadline; who did not do it."""

        async def ask(rank: SwitchableRank) -> bool:
            try:
                reply = await rank.call(
                    code,
                    epoch=self.epoch,
                    deadline_s=ABORT_DEADLINE_S,
                    expires_s=ABORT_LIFETIME_S,
                    flags=self._flags,
                )
            except (RankGoneError, RankSilentError):
                return False
            return reply.outcome is Outcome.OK

        done = await asyncio.gather(*(ask(rank) for rank in self._ranks))
        return [rank.name for rank, ok in zip(self._ranks, done, strict=True) if not ok]

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

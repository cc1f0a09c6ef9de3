"""Named barriers over the ranks of one job: what every operation on a job is made of.

A barrier asks every rank to do one step, and ends when all have answered; every wait in it is
bounded by the operation's deadline. A rank whose program does not want to be disturbed at the
moment is asked again until then.

A step that lets messages arrive is repeated in waves, until two equal ones in which the job's sums
of sent and received messages agree and nothing is outstanding anywhere. One wave is not enough: the
ranks answer at different moments, and a message may be counted as received by one that answers late
and not yet as sent by one that answered early. Between two waves with the same counts nothing was
sent or received at all. (Mattern, 1987, "Algorithms for distributed termination detection", the
four-counter method.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec

from kawarimi_agent.ranks import RankGoneError, RankSilentError, SwitchableRank
from kawarimi_agent.report import StepRecord
from kawarimi_ompi.protocol import Blob, Command, CommandFlag, Outcome, Reply, Step, StepFlag
from kawarimi_wire.errors import ExecutionFailed, PreflightRefused, Scope, Slug

PAUSE_S = (0.0005, 0.02)
"""Between waves, and before asking a rank again that deferred: the first pause and the longest."""

UNDO_DEADLINE_S = 5.0
"""How long to wait for the way back, beyond the operation's own deadline."""

UNDO_LIFETIME_S = 3600.0
"""How long the way back stays valid in a rank that does not come to its safe point."""

_REFUSALS = {
    Outcome.NO_DEVICE: (
        Slug.FABRIC_ABSENT,
        "plug the device, or wait until its port is active; openib on RoCE serves programs that "
        "ask for MPI_THREAD_SINGLE, and no others",
    ),
    Outcome.NO_ROOM: (
        Slug.NO_ROOM,
        "let the program receive more of what is sent to it, or start it with a larger "
        "KAWARIMI_UCP_KEPT_BYTES",
    ),
}

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


class Operation:
    """One operation on one job, step by step.

    :param deadline_s: for all steps together; the way back has its own.
    :param poke: wake ranks that compute outside MPI by a signal.
    :raise PreflightRefused: these ranks are not a whole job that can be switched.
    """

    def __init__(self, job: str, ranks: Ranks, *, deadline_s: float, poke: bool = False) -> None:
        preflight(job, ranks)
        self.job = job
        self.epoch = max(rank.epoch for rank in ranks) + 1
        self._ranks = list(ranks)
        self._flags = CommandFlag.POKE if poke else CommandFlag(0)
        self._began = time.monotonic()
        self._ends = self._began + deadline_s
        self._deadline_s = deadline_s
        self._records: list[StepRecord] = []
        self._replies: dict[int, Reply] = {}
        self._gathered: tuple[Blob, ...] = ()

    def _command(
        self, code: int, blobs: tuple[Blob, ...] = (), expires_s: float | None = None
    ) -> Command:
        left = max(self._ends - time.monotonic(), 0.001)
        return Command(code, self.epoch, left, self._flags, blobs, expires_s)

    async def _step(self, step: Step, expires_s: float | None = None) -> None:
        """Run one step the way its flags say.

        :raise KawarimiError: it failed in some rank, or the deadline came.
        """
        blobs = self._gathered if step.has(StepFlag.SCATTER) else ()
        if step.has(StepFlag.WAVES):
            await self._waves(step)
            return
        replies = await self._barrier(step.name, self._command(step.code, blobs, expires_s))
        if step.has(StepFlag.GATHER):
            self._gathered = tuple(blob for reply in replies for blob in reply.blobs)

    async def _barrier(self, name: str, command: Command) -> list[Reply]:
        """Ask every rank, and wait for all answers.

        :raise KawarimiError: the first thing that went wrong, the gravest first.
        """
        started = time.monotonic()
        results = await self._ask(command)
        replies = [result for result in results if isinstance(result, Reply)]
        self._record(name, started, replies, waves=1)
        self._raise_failures(name, results)
        for rank, reply in zip(self._ranks, replies, strict=True):
            self._replies[rank.hello.vpid] = reply
        return replies

    async def _ask(self, command: Command) -> list[Reply | BaseException]:
        """Ask every rank, and those whose program defers it again, until the deadline."""
        results: dict[SwitchableRank, Reply | BaseException] = {}
        pause, longest = PAUSE_S
        asked = self._ranks
        while True:
            answers = await asyncio.gather(
                *(rank.call(command) for rank in asked), return_exceptions=True
            )
            for rank, answer in zip(asked, answers, strict=True):
                # One that deferred, and found no time to say so again, did defer.
                if rank not in results or not _came_too_late(answer):
                    results[rank] = answer
            asked = [rank for rank in asked if _deferred(results[rank])]
            if not asked or time.monotonic() + pause >= self._ends:
                return [results[rank] for rank in self._ranks]
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
            command = msgspec.structs.replace(command, deadline_s=self._ends - time.monotonic())

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
        gone, silent, deferred, refused = [], [], {}, {}
        for rank, result in zip(self._ranks, results, strict=True):
            if isinstance(result, RankGoneError):
                gone.append(rank.name)
            elif isinstance(result, RankSilentError):
                silent.append(rank.name)
            elif isinstance(result, BaseException):
                raise result
            elif result.outcome is Outcome.EXPIRED:
                silent.append(rank.name)
            elif result.outcome is Outcome.DEFERRED:
                deferred[rank.name] = result.text
            elif result.outcome is not Outcome.OK:
                refused[rank.name] = result
        facts: dict[str, object] = {
            "step": step,
            "ranks": gone or silent or list(refused or deferred),
        }
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
            slug, hint = _REFUSALS.get(reply.outcome, (Slug.STEP_REFUSED, ""))
            absent = reply.outcome is Outcome.NO_DEVICE
            raise ExecutionFailed(
                slug,
                f"{name}, step {step}: {reply.text or reply.outcome.name.lower()}",
                hint=hint,
                scope=Scope.DEVICE if absent else Scope.JOB,
                facts={**facts, "outcome": reply.outcome.name.lower(), "kept": reply.kept},
            )
        if deferred:
            name, reason = next(iter(deferred.items()))
            raise ExecutionFailed(
                Slug.DEFERRED_BY_PROGRAM,
                f"the program in {name} did not want to be disturbed for {self._deadline_s:g} s "
                f"(step {step}): {reason}",
                hint="try again later, or with a longer --deadline",
                scope=Scope.JOB,
                facts={**facts, "reasons": deferred},
            )

    async def _waves(self, step: Step) -> None:
        """Repeat a step until two equal waves balance.

        :raise ExecutionFailed: they did not by the deadline; the facts hold every rank's counters.
        """
        started = time.monotonic()
        pause, longest = PAUSE_S
        before: list[tuple[int, int]] | None = None
        waves, replies = 0, list[Reply]()
        while time.monotonic() < self._ends:
            before_len = len(self._records)
            replies = await self._barrier(step.name, self._command(step.code))
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
            f"the job's messages did not all arrive within {self._deadline_s:g} s (step "
            f"{step.name})",
            hint="the job may be communicating through a stuck peer or a lossy network; try again",
            scope=Scope.JOB,
            facts={
                rank.name: {
                    "sent": reply.sent,
                    "received": reply.received,
                    "outstanding": reply.outstanding,
                    "pending": reply.pending,
                    "kept": reply.kept,
                }
                for rank, reply in zip(self._ranks, replies, strict=False)
            },
        )

    async def _ask_all(self, code: int) -> list[str]:
        """Send one command to every rank, outside the operation's deadline; who did not do it."""
        command = Command(code, self.epoch, UNDO_DEADLINE_S, self._flags, expires_s=UNDO_LIFETIME_S)

        async def ask(rank: SwitchableRank) -> bool:
            try:
                reply = await rank.call(command)
            except (RankGoneError, RankSilentError):
                return False
            return reply.outcome is Outcome.OK

        done = await asyncio.gather(*(ask(rank) for rank in self._ranks))
        return [rank.name for rank, ok in zip(self._ranks, done, strict=True) if not ok]


def _deferred(result: Reply | BaseException) -> bool:
    return isinstance(result, Reply) and result.outcome is Outcome.DEFERRED


def _came_too_late(result: Reply | BaseException) -> bool:
    return isinstance(result, RankSilentError) or (
        isinstance(result, Reply) and result.outcome is Outcome.EXPIRED
    )

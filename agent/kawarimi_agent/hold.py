"""Holds a job still: every rank parked, and no message of the job between two machines.

For consistent checkpoints of a whole virtual cluster, and where the network below the fallback does
not follow the virtual machine: after the fabric was left, and until it is taken again. Switches may
be made while the job is held.

Parked ranks begin no messages, and complete those under way; what has no matching receive yet waits
in the ranks' memory. So once all are parked, waves find the job's messages at rest
(`kawarimi_agent.barriers`). Messages through shared memory never leave the machine, and are at rest
with it. Not at rest are the connections of Open MPI's runtime (mpirun and its daemons), which carry
no message of the program.

A hold is a lease: every rank lets go by itself when it ends, whatever has become of the agent or of
the coordinator; `renew` extends it.
"""

from __future__ import annotations

import time

from kawarimi_agent.barriers import Operation, Ranks
from kawarimi_agent.report import HoldReport
from kawarimi_ompi.protocol import Code
from kawarimi_wire.errors import KawarimiError, OutcomeUnknown, Scope, Slug, UsageError


class Hold(Operation):
    """Park a job's ranks, and let them go.

    :param lease_s: how long the ranks stay parked at most, from each `begin` or `renew` on.
    :param deadline_s: for beginning.
    :param poke: wake ranks that compute outside MPI by a signal.
    :raise PreflightRefused: these ranks are not a whole job that can be held.
    :raise UsageError: the ranks' kind of shim cannot be held.
    """

    def __init__(
        self, job: str, ranks: Ranks, *, lease_s: float, deadline_s: float, poke: bool = False
    ) -> None:
        super().__init__(job, ranks, deadline_s=deadline_s, poke=poke)
        self._steps = ranks[0].hello.hold
        self._lease_s = lease_s
        self._quiet_since = 0.0
        if not self._steps:
            raise UsageError(
                Slug.STEP_REFUSED,
                f"the ranks of job {job} know no way to be held",
                untouched="the job runs on as before",
                scope=Scope.JOB,
            )

    async def begin(self) -> HoldReport:
        """Park every rank, and wait until nothing is under way between them. May be repeated.

        :raise ExecutionFailed: a rank did not come, its program deferred, or messages did not
            arrive by the deadline; no rank is parked.
        :raise OutcomeUnknown: likewise, but for ranks that did not answer; they let go at their
            next safe point.
        """
        self._restart()
        try:
            for step in self._steps:
                await self._step(step, self._lease_s)
        except KawarimiError as error:
            raise await self._back(error) from error
        self._quiet_since = time.monotonic()
        duration_s = self._quiet_since - self._began
        return HoldReport(self.job, self.epoch, duration_s, tuple(self._records))

    async def renew(self) -> None:
        """Extend the lease, and make sure that no rank has let go since `begin`.

        :raise OutcomeUnknown: `hold-lost` if one has, or does not answer: messages may be under
            way. The others stay parked until `resume` or the end of the lease.
        """
        await self._ask_all(Code.STATUS)  # for the epochs of switches made meanwhile
        self._restart()
        elapsed_s = time.monotonic() - self._quiet_since
        replies = await self._barrier("renew", self._command(Code.HOLD, expires_s=self._lease_s))
        lost = [
            rank.name
            for rank, reply in zip(self._ranks, replies, strict=True)
            if reply.held_ns / 1e9 < elapsed_s
        ]
        if lost:
            raise OutcomeUnknown(
                Slug.HOLD_LOST,
                f"{lost[0]} had let go: its lease of {self._lease_s:g} s was over",
                hint="begin again",
                scope=Scope.JOB,
                facts={"ranks": lost},
            )

    async def resume(self) -> None:
        """Let every rank go. May be repeated.

        :raise OutcomeUnknown: for ranks that did not answer; they let go at the end of the lease.
        """
        await self._ask_all(Code.STATUS)  # likewise
        self._restart()
        unanswered = await self._ask_all(Code.RESUME)
        if unanswered:
            raise OutcomeUnknown(
                Slug.RANK_NOT_REACHED,
                f"{', '.join(unanswered)} did not answer",
                untouched="the other ranks run",
                hint=f"they let go by themselves, after {self._lease_s:g} s at most",
                scope=Scope.JOB,
                facts={"ranks": unanswered},
            )

    def _restart(self) -> None:
        """Begin to count anew, not behind any epoch that a rank has told."""
        self.epoch = max(self.epoch, *(rank.epoch for rank in self._ranks))
        self._records = []
        self._began = time.monotonic()
        self._ends = self._began + self._deadline_s

    async def _back(self, error: KawarimiError) -> KawarimiError:
        unanswered = await self._ask_all(Code.RESUME)
        if not unanswered:
            error.untouched = "the job runs on as before"
            return error
        return OutcomeUnknown(
            error.slug,
            error.what,
            untouched="the other ranks run on as before",
            hint=f"{', '.join(unanswered)} will not be parked for longer than {self._lease_s:g} s",
            scope=error.scope,
            facts={**error.facts, "unanswered": unanswered},
        )

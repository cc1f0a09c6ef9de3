"""The MPI jobs of this machine, and what can be asked of them."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec

from kawarimi_agent.coordinator import Switch
from kawarimi_agent.ranks import Rank, RankGoneError, RankServer, RankSilentError
from kawarimi_agent.report import SwitchReport
from kawarimi_ompi.protocol import (
    Code,
    Command,
    Component,
    Hello,
    Peer,
    Reply,
    State,
)
from kawarimi_wire.errors import OutcomeUnknown, PreflightRefused, Scope, Slug, UsageError


class JobSummary(msgspec.Struct, frozen=True):
    """One job in a list.

    :ivar ranks: how many it has; `connected`: how many of them have said hello here.
    :ivar states: how many ranks stand where.
    :ivar refusal: why it cannot be switched; empty if nothing is known against it.
    """

    job: str
    uid: int
    ranks: int
    connected: int
    fabric: str
    fallback: str
    kind: str
    states: dict[str, int]
    refusal: str


class RankEntry(msgspec.Struct, frozen=True):
    """One connected rank, as another coordinator needs to know it."""

    hello: Hello
    state: State
    epoch: int


class RankStatus(msgspec.Struct, frozen=True):
    """One rank; times in seconds. Of a rank that did not answer only `vpid` and `state` are known.

    :ivar answered: whether the rank came to a safe point in time.
    :ivar stall_s: time in the shim, in the rank's thread, since MPI_Init.
    :ivar longest_gap_s: the longest time without a break in it.
    :ivar kept: bytes that have arrived, and that the shim keeps until the program receives them.
    """

    vpid: int
    state: str
    answered: bool
    stall_s: float = 0.0
    longest_gap_s: float = 0.0
    pending: int = 0
    kept: int = 0
    components: tuple[Component, ...] = ()
    peers: tuple[Peer, ...] = ()


class JobStatus(msgspec.Struct, frozen=True):
    """One job in detail."""

    summary: JobSummary
    ranks: tuple[RankStatus, ...]


def job_name(jobid: int) -> str:
    """Open MPI's job number as people write it: the family and the job within it."""
    return f"{jobid >> 16}.{jobid & 0xFFFF}"


class Jobs:
    """The jobs whose ranks are connected to a server, and one operation at a time on each."""

    def __init__(self, server: RankServer) -> None:
        self._server = server
        self._locks: dict[str, asyncio.Lock] = {}

    def _ranks(self) -> dict[str, list[Rank]]:
        jobs: dict[str, list[Rank]] = {}
        for rank in sorted(self._server.ranks, key=lambda rank: rank.hello.vpid):
            jobs.setdefault(job_name(rank.hello.jobid), []).append(rank)
        return jobs

    def _of(self, job: str, uid: int) -> list[Rank]:
        """Find the ranks of one job, if this user may touch it.

        :raise UsageError: there is no such job.
        :raise PreflightRefused: it is another user's.
        """
        ranks = self._ranks().get(job)
        if ranks is None:
            raise UsageError(
                Slug.UNKNOWN_JOB,
                f"no job {job!r} is connected to this agent",
                untouched="every job",
                hint="'kawarimi jobs' lists them",
                scope=Scope.JOB,
            )
        if uid not in (0, ranks[0].uid):
            raise PreflightRefused(
                Slug.JOB_NOT_YOURS,
                f"job {job} belongs to user {ranks[0].uid}",
                untouched="the job runs on as before",
                scope=Scope.JOB,
            )
        return ranks

    def summaries(self) -> list[JobSummary]:
        """Summarise every job."""
        return [self._summary(name, ranks) for name, ranks in sorted(self._ranks().items())]

    def _summary(self, name: str, ranks: list[Rank]) -> JobSummary:
        hello = ranks[0].hello
        return JobSummary(
            job=name,
            uid=ranks[0].uid,
            ranks=hello.ranks,
            connected=len(ranks),
            fabric=hello.fabric,
            fallback=hello.fallback,
            kind=hello.kind,
            states=dict(Counter(rank.state.name.lower() for rank in ranks)),
            refusal=next((rank.hello.refusal for rank in ranks if rank.hello.refusal), ""),
        )

    async def status(self, job: str, uid: int, *, deadline_s: float) -> JobStatus:
        """Ask every rank of a job where it stands. Changes nothing.

        :raise UsageError: there is no such job.
        :raise PreflightRefused: it is another user's.
        """
        ranks = self._of(job, uid)
        return JobStatus(
            self._summary(job, ranks),
            tuple(await asyncio.gather(*(self._status(rank, deadline_s) for rank in ranks))),
        )

    async def _status(self, rank: Rank, deadline_s: float) -> RankStatus:
        try:
            reply = await rank.call(Command(Code.STATUS, rank.epoch, deadline_s))
        except (RankGoneError, RankSilentError):
            return RankStatus(rank.hello.vpid, rank.state.name.lower(), answered=False)
        return RankStatus(
            vpid=rank.hello.vpid,
            state=rank.state.name.lower(),
            answered=True,
            stall_s=reply.stall_total_ns / 1e9,
            longest_gap_s=reply.stall_longest_ns / 1e9,
            pending=reply.pending,
            kept=reply.kept,
            components=reply.components,
            peers=reply.peers,
        )

    def ranks(self, job: str, uid: int) -> list[RankEntry]:
        """List the ranks of a job that are connected here, for a coordinator elsewhere.

        :raise UsageError: there is no such job.
        :raise PreflightRefused: it is another user's.
        """
        return [RankEntry(rank.hello, rank.state, rank.epoch) for rank in self._of(job, uid)]

    async def call(self, job: str, uid: int, vpid: int, command: Command) -> Reply:
        """Send one command to one rank, for a coordinator elsewhere.

        :raise UsageError: there is no such job.
        :raise PreflightRefused: it is another user's.
        :raise OutcomeUnknown: `rank-gone` or `rank-not-reached`: no reply came.
        """
        rank = next((r for r in self._of(job, uid) if r.hello.vpid == vpid), None)
        try:
            if rank is None:
                raise RankGoneError(f"rank {vpid}")
            return await rank.call(command)
        except RankGoneError as error:
            raise OutcomeUnknown(Slug.RANK_GONE, f"{error} went away") from error
        except RankSilentError as error:
            raise OutcomeUnknown(Slug.RANK_NOT_REACHED, f"{error} did not answer") from error

    async def switch(
        self, job: str, uid: int, to: str, *, deadline_s: float, poke: bool
    ) -> SwitchReport:
        """Bring a job to another BTL; see `kawarimi_agent.coordinator.Switch.run`.

        :raise UsageError: there is no such job or BTL.
        :raise PreflightRefused: it is another user's, cannot be switched, or is being switched.
        """
        ranks = self._of(job, uid)
        lock = self._locks.setdefault(job, asyncio.Lock())
        if lock.locked():
            raise PreflightRefused(
                Slug.JOB_BUSY,
                f"job {job} is being switched by somebody else",
                untouched="that operation",
                hint="wait for it to end",
                scope=Scope.JOB,
            )
        async with lock:
            return await Switch(job, ranks, to, deadline_s=deadline_s, poke=poke).run()

"""Carries an operation out: phase by phase there, back if it fails, forward once a guest has moved.

The phases, their order and what proves each of them done: `kawarimi_wire.phases`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from kawarimi_bridge.config import Config
from kawarimi_bridge.hypervisor import Hypervisor
from kawarimi_bridge.migration import MigrationProgress
from kawarimi_bridge.migration_parameters import MigrationParameters
from kawarimi_bridge.operation.diary import Diary
from kawarimi_bridge.operation.fabric import leave_fabric, take_fabric
from kawarimi_bridge.operation.freezer import Freezer
from kawarimi_bridge.operation.plan import Job, Plan
from kawarimi_bridge.operation.reprobe import await_device, exchange, pairs_of, reprobe
from kawarimi_bridge.operation.retransmit import quick_retransmission
from kawarimi_bridge.operation.sampler import Sampler, sampled
from kawarimi_bridge.together import all_of
from kawarimi_wire.errors import Degraded, Interrupted, KawarimiError, NeedsCleanup, Slug
from kawarimi_wire.messages import ANSWER_MARGIN_S, AskReleased, Released, VerbsDevice
from kawarimi_wire.phases import Mode, Phase, Result, spec
from kawarimi_wire.record import Move, OperationRecord

_UNDO_UNPLUG_S = 20.0
"""For an unplug that was requested and then given up: the guest may yet follow the request, so that
it is seen through before the HCA is plugged again."""


@dataclass(frozen=True)
class Options:
    """How an operation is carried out.

    :ivar deadlines: seconds for a phase, where it is not the table's own.
    :ivar poke: wake ranks that compute outside MPI by a signal.
    """

    mode: Mode = Mode.LIVE
    parameters: MigrationParameters = field(default_factory=MigrationParameters)
    deadlines: Mapping[Phase, float] = field(default_factory=dict)
    poke: bool = False

    def deadline(self, phase: Phase) -> float:
        """Return the seconds that a phase may take."""
        return self.deadlines.get(phase, spec(phase).deadline_s)


@dataclass(frozen=True)
class _Undo:
    """The way back from one step. It is on the list before the step is begun."""

    phase: Phase
    guest: str
    run: Callable[[], Awaitable[None]]


class Operation:
    """One planned operation. `run` it once.

    Every guest is in one place at every moment, and what `run` does next follows from where the
    hypervisor says it is: while no guest has moved, everything can be undone; from then on, the
    guests that have moved are given what their new host has.
    """

    def __init__(
        self,
        config: Config,
        hypervisor: Hypervisor,
        plan: Plan,
        diary: Diary,
        options: Options,
    ) -> None:
        self._config = config
        self._hypervisor = hypervisor
        self._plan = plan
        self._diary = diary
        self._options = options
        self._undo: list[_Undo] = []
        self._hosts = {move.guest: move.source for move in plan.moves}
        self._moving = [move for move in plan.moves if move.source != move.destination]
        self._way_there: asyncio.Task[None] | None = None
        self._freezer = Freezer(diary, deadline_s=options.deadline(Phase.DRAIN), poke=options.poke)

    def interrupt(self) -> bool:
        """Ask for the way back, as on Ctrl-C; return False where there is none any more."""
        if self._way_there is None or self._way_there.done():
            return False
        return self._way_there.cancel()

    async def run(self) -> OperationRecord:
        """Carry it out to one of the four results, and return its record.

        :raise KawarimiError: only what leaves it unknown where a guest is.
        """
        agents, affected = self._plan.agents, self._plan.affected
        async with (
            sampled(agents, affected, self._diary) as sampler,
            quick_retransmission(self._config, agents, affected),
        ):
            try:
                return await self._there_and_on(sampler)
            finally:
                await self._freezer.thaw()

    async def _there_and_on(self, sampler: Sampler) -> OperationRecord:
        self._way_there = asyncio.create_task(self._go(sampler))
        failure: KawarimiError | None = None
        try:
            await self._way_there
        except asyncio.CancelledError:
            failure = Interrupted(Slug.INTERRUPTED, "Interrupted.")
        except KawarimiError as error:
            failure = error
        await self._look_where_they_are()
        if failure is not None and not self._has_moved():
            return await self._back(failure)
        return await self._arrive(failure)

    # The way there: everything up to the point of no return.

    async def _go(self, sampler: Sampler) -> None:
        for move in self._moving:
            self._undo.append(_Undo(Phase.PREPARE, move.guest, self._discard(move)))
        await all_of(self._start_destination(move) for move in self._moving)
        await self._leave()
        if self._options.mode is Mode.FROZEN and self._moving:
            await self._freezer.freeze(self._plan.jobs)
        await all_of(self._unplug(move) for move in self._moving)
        await all_of(self._migrate(move, sampler) for move in self._moving)

    async def _start_destination(self, move: Move) -> None:
        with self._diary.phase(Phase.PREPARE, move.guest):
            await self._hypervisor.start_destination(move.guest, move.destination)

    async def _leave(self) -> None:
        """PREPARE, DRAIN and RELEASE: nothing uses a moving guest's HCA any more."""
        leaving = self._leaving()
        if leaving:
            self._undo.append(_Undo(Phase.RELEASE, "", self._take_back(leaving)))
            deadline_s = self._options.deadline(Phase.DRAIN)
            await leave_fabric(leaving, self._diary, deadline_s=deadline_s, poke=self._options.poke)
        else:
            for move in self._plan.moves:
                self._diary.skip_pending(Phase.PREPARE, move.guest, "no job is on a fabric")
                self._diary.skip(Phase.DRAIN, move.guest, "no job is on a fabric")
        await all_of(self._release(move) for move in self._plan.moves)

    def _leaving(self) -> list[Job]:
        moving = {move.guest for move in self._moving}
        return [job for job in self._plan.jobs if job.on_fabric and moving & set(job.guests)]

    async def _release(self, move: Move) -> None:
        device = self._plan.devices.get(move.guest)
        if device is None or move not in self._moving:
            self._diary.skip(Phase.RELEASE, move.guest, "it holds no HCA, or does not move")
            return
        deadline_s = self._options.deadline(Phase.RELEASE)
        with self._diary.phase(Phase.RELEASE, move.guest) as facts:
            request = AskReleased(device.name, deadline_s)
            agent = self._plan.agents[move.guest]
            done = await agent.ask(request, Released, deadline_s + ANSWER_MARGIN_S)
            facts.update(device=device.name, waited_s=done.waited_s)

    async def _unplug(self, move: Move) -> None:
        if move.guest not in self._plan.devices:
            self._diary.skip(Phase.UNPLUG, move.guest, "it holds no HCA")
            return
        self._undo.append(_Undo(Phase.UNPLUG, move.guest, self._plug_back(move)))
        with self._diary.phase(Phase.UNPLUG, move.guest) as facts:
            deadline_s = self._options.deadline(Phase.UNPLUG)
            done = await self._hypervisor.unplug(move.guest, deadline_s)
            facts["requests"] = done.requests

    async def _migrate(self, move: Move, sampler: Sampler) -> None:
        parameters = self._options.parameters.share(len(self._moving))

        def progress(seen: MigrationProgress) -> None:
            if seen.paused:
                sampler.pause(move.guest)
            self._diary.note(
                phase=Phase.MIGRATE,
                guest=move.guest,
                transferred=seen.transferred,
                remaining=seen.remaining,
                rate=seen.rate,
            )

        with self._diary.phase(Phase.MIGRATE, move.guest) as facts:
            try:
                result = await self._hypervisor.migrate(
                    move.guest,
                    move.destination,
                    parameters,
                    self._options.deadline(Phase.MIGRATE),
                    progress,
                )
            finally:
                sampler.resume(move.guest)
            self._diary.migrated(move.guest, result)
            facts.update(downtime_s=result.downtime_s, transferred=result.transferred)

    async def _look_where_they_are(self) -> None:
        for move in self._moving:
            self._hosts[move.guest] = await self._hypervisor.locate(move.guest)

    def _has_moved(self) -> bool:
        return any(self._hosts[move.guest] == move.destination for move in self._moving)

    # The way back.

    def _discard(self, move: Move) -> Callable[[], Awaitable[None]]:
        return lambda: self._hypervisor.discard_destination(move.guest, move.destination)

    def _plug_back(self, move: Move) -> Callable[[], Awaitable[None]]:
        async def undo() -> None:
            await self._hypervisor.unplug(move.guest, _UNDO_UNPLUG_S)
            await self._hypervisor.plug(move.guest, self._options.deadline(Phase.PLUG))
            await self._device(move.guest, move.source)

        return undo

    async def _device(self, guest: str, host: str) -> VerbsDevice:
        """Wait until the HCA that a guest has on a host is usable."""
        deadline_s = self._options.deadline(Phase.REPROBE)
        return await await_device(self._config, self._plan.agents[guest], guest, host, deadline_s)

    def _take_back(self, jobs: list[Job]) -> Callable[[], Awaitable[None]]:
        async def undo() -> None:
            if any(begun.phase is Phase.UNPLUG for begun in self._undo):
                # No fabric is taken that was not proven since its HCA was plugged.
                hosts = await self._current_hosts()
                guests = sorted({guest for job in jobs for guest in job.guests})
                devices = {guest: await self._device(guest, hosts[guest]) for guest in guests}
                await exchange(self._plan.agents, devices, pairs_of(jobs))
                self._diary.note("the fabric is proven again", guests=guests)
            await self._take(jobs)

        return undo

    async def _take(self, jobs: list[Job]) -> None:
        deadline_s = self._options.deadline(Phase.RESELECT)
        await take_fabric(jobs, self._diary, deadline_s=deadline_s, poke=self._options.poke)

    async def _back(self, cause: KawarimiError) -> OperationRecord:
        """Undo what was done, the last first, and collect what cannot be undone."""
        problems: list[KawarimiError] = []
        self._diary.note("rolling back", cause=cause.as_dict())
        for undo in reversed(self._undo):
            if undo.phase is Phase.RELEASE and problems:
                continue  # no job takes a fabric whose HCA did not come back
            try:
                await undo.run()
                self._diary.undone(undo.phase, undo.guest)
            except KawarimiError as problem:
                problems.append(problem)
                self._diary.note("not undone", phase=undo.phase, error=problem.as_dict())
        if not problems:
            cause.untouched = "every guest and every job is where and as it was"
            return self._diary.record(Result.ROLLED_BACK, cause.as_dict())
        error = NeedsCleanup(
            cause.slug,
            f"{cause.what} Not everything could be undone: "
            + " ".join(problem.what for problem in problems),
            untouched="the guests run where they were, and their jobs on the fallback",
            hint="mend it, then 'kawarimi cleanup' and 'kawarimi recover'",
            scope=cause.scope,
            facts={**cause.facts, "not undone": [problem.as_dict() for problem in problems]},
        )
        return self._diary.record(Result.NEEDS_CLEANUP, error.as_dict())

    # Forward only.

    async def _arrive(self, failure: KawarimiError | None) -> OperationRecord:
        """Give every guest what its host has, and every job the best fabric that it can have."""
        problem: KawarimiError | None = None
        stayed = [move for move in self._moving if self._hosts[move.guest] != move.destination]
        try:
            for move in stayed:
                await self._hypervisor.discard_destination(move.guest, move.destination)
            await all_of(self._plug(move) for move in self._plan.moves)
            await self._reselect()
        except KawarimiError as error:
            problem = error
            for phase in (Phase.PLUG, Phase.REPROBE, Phase.RESELECT):
                self._skip_rest(phase, "the jobs stay on the fallback")
        if stayed:
            torn = self._torn_apart(stayed, failure or problem)
            return self._diary.record(Result.NEEDS_CLEANUP, torn.as_dict())
        if problem is not None:
            degraded = Degraded(
                problem.slug,
                problem.what,
                untouched="the guests are where they should be; their jobs run on the fallback",
                hint=problem.hint or "mend it, then 'kawarimi recover'",
                scope=problem.scope,
                facts=problem.facts,
            )
            return self._diary.record(Result.DEGRADED, degraded.as_dict())
        if failure is not None:  # it came too late: every guest had moved
            self._diary.note("seen through", cause=failure.as_dict())
        return self._diary.record(Result.COMPLETED, None)

    def _torn_apart(self, stayed: list[Move], failure: KawarimiError | None) -> NeedsCleanup:
        assert failure is not None, "a guest stays only where something has failed"
        names = " ".join(move.guest for move in stayed)
        return NeedsCleanup(
            failure.slug,
            f"{failure.what} {names} did not move, and the others had moved already.",
            untouched="every job runs",
            hint=f"'kawarimi migrate {names}' again, or move the others back",
            scope=failure.scope,
            facts=failure.facts,
        )

    async def _plug(self, move: Move) -> None:
        host = self._hosts[move.guest]
        if self._config.hca(move.guest, host) is None:
            self._diary.skip(Phase.PLUG, move.guest, f"{host} has no HCA for it")
            return
        if await self._hypervisor.attached(move.guest) is not None:
            self._diary.skip(Phase.PLUG, move.guest, "it holds its HCA")
            return
        with self._diary.phase(Phase.PLUG, move.guest):
            await self._hypervisor.plug(move.guest, self._options.deadline(Phase.PLUG))

    async def _reselect(self) -> None:
        """REPROBE and RESELECT, for the jobs whose guests are all on one fabric now."""
        hosts = await self._current_hosts()
        taking = [
            job
            for job in self._plan.jobs
            if len(fabrics := {self._config.fabric(g, hosts[g]) for g in job.guests}) == 1
            and fabrics != {""}
        ]
        proving = {
            move.guest
            for move in self._plan.moves
            if self._config.hca(move.guest, hosts[move.guest])
        } | {guest for job in taking for guest in job.guests}
        await reprobe(
            self._config,
            self._plan.agents,
            {guest: hosts[guest] for guest in sorted(proving)},
            pairs_of(taking),
            self._diary,
            deadline_s=self._options.deadline(Phase.REPROBE),
        )
        if taking:
            with self._diary.phase(Phase.RESELECT):
                await self._take(taking)
        self._skip_rest(Phase.REPROBE, "its host has no HCA for it")
        self._skip_rest(Phase.RESELECT, "no job has all of its guests on one fabric")

    async def _current_hosts(self) -> dict[str, str]:
        hosts = dict(self._hosts)
        for guest in self._plan.affected:
            if guest not in hosts:
                hosts[guest] = await self._hypervisor.locate(guest)
        return hosts

    def _skip_rest(self, phase: Phase, why: str) -> None:
        for move in self._plan.moves:
            self._diary.skip_pending(phase, move.guest, why)

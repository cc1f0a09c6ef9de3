"""What an operation will do: resolved by asking, and touching nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kawarimi_agent.barriers import preflight
from kawarimi_agent.jobs import JobSummary
from kawarimi_agent.remote import RemoteRank, find_ranks
from kawarimi_bridge.config import Config
from kawarimi_bridge.hypervisor import Hypervisor
from kawarimi_bridge.together import all_of
from kawarimi_ompi.protocol import State
from kawarimi_wire.errors import KawarimiError, PreflightRefused, Scope, Slug, UsageError
from kawarimi_wire.messages import (
    ANSWER_MARGIN_S,
    AskDevices,
    AskJobs,
    AskReleased,
    Channel,
    Released,
    VerbsDevice,
)
from kawarimi_wire.record import Move

_HOLDERS_DEADLINE_S = 0.0
"""Who holds a device now is asked, not waited for."""


@dataclass(frozen=True)
class Job:
    """A job that has ranks on an affected guest.

    :ivar guests: every guest that it has ranks on.
    """

    name: str
    guests: tuple[str, ...]
    fabric: str
    fallback: str
    on_fabric: bool
    channels: tuple[Channel, ...]

    async def ranks(self) -> list[RemoteRank]:
        """Return its ranks as they are now.

        :raise KawarimiError: an agent does not answer.
        """
        return await find_ranks(self.channels, self.name)


@dataclass(frozen=True)
class Plan:
    """Guests, where they go, and what is affected.

    :ivar agents: the agents of every guest that answers, moving or not.
    :ivar devices: the verbs device of each moving guest that has its HCA now.
    """

    moves: tuple[Move, ...]
    jobs: tuple[Job, ...]
    agents: Mapping[str, Channel]
    devices: Mapping[str, VerbsDevice] = field(default_factory=dict)

    def move(self, guest: str) -> Move:
        """Return a guest's move."""
        return next(move for move in self.moves if move.guest == guest)

    @property
    def affected(self) -> tuple[str, ...]:
        """Return every guest that moves, or has ranks that talk to one that does."""
        names = [move.guest for move in self.moves]
        names += [guest for job in self.jobs for guest in job.guests]
        return tuple(dict.fromkeys(names))


def check_names(config: Config, guests: Sequence[str], hosts: Iterable[str]) -> None:
    """Refuse names that the configuration does not have, and guests that are named twice.

    :raise UsageError: `unknown-guest`, `unknown-host`, or `bad-usage`.
    """
    for guest, times in Counter(guests).items():
        config.guest(guest)
        if times > 1:
            raise UsageError(
                Slug.BAD_USAGE,
                f"{guest} is named {times} times.",
                untouched="nothing was begun",
                hint="name each guest once, with one destination",
            )
    for host in hosts:
        config.host(host)


async def find_moves(
    config: Config, hypervisor: Hypervisor, guests: Sequence[str], to: Mapping[str, str]
) -> tuple[Move, ...]:
    """Return the way of each guest from where it is.

    :param to: the destination of each guest; one that is not named stays where it is.
    :raise PreflightRefused: `qmp-unreachable`.
    """
    sources = await asyncio.gather(*(hypervisor.locate(guest) for guest in guests))
    return tuple(
        Move(
            guest,
            source,
            to.get(guest, source),
            config.fabric(guest, source),
            config.fabric(guest, to.get(guest, source)),
        )
        for guest, source in zip(guests, sources, strict=True)
    )


async def make_plan(
    config: Config,
    hypervisor: Hypervisor,
    agents: Mapping[str, Channel],
    moves: Sequence[Move],
    unreachable: Mapping[str, KawarimiError],
) -> Plan:
    """Look at everything that the operation depends on, and refuse what cannot work.

    :param unreachable: the configured guests whose agent does not answer, and why.
    :raise PreflightRefused: with the reason; nothing was touched.
    """
    for move in moves:
        if move.guest in unreachable:
            error = unreachable[move.guest]
            raise PreflightRefused(
                error.slug,
                error.what,
                untouched="every guest and every job",
                hint=error.hint,
                scope=Scope.GUEST,
                facts=error.facts,
            )
    jobs = await _affected_jobs(agents, [move.guest for move in moves], unreachable)
    for job, ranks in zip(jobs, await all_of(job.ranks() for job in jobs), strict=True):
        preflight(job.name, ranks)
    coming: dict[str, list[str]] = {}
    for move in moves:
        if move.source != move.destination:
            coming.setdefault(move.destination, []).append(move.guest)
    await all_of(hypervisor.check_destination(guests, host) for host, guests in coming.items())

    async def look(move: Move) -> VerbsDevice | None:
        device = await _device(config, hypervisor, agents[move.guest], move)
        if device is not None:
            here = [job.name for job in jobs if move.guest in job.guests]
            await _refuse_foreign_holders(agents[move.guest], move.guest, device, here)
        return device

    found = zip(moves, await all_of(look(move) for move in moves), strict=True)
    devices = {move.guest: device for move, device in found if device is not None}
    return Plan(tuple(moves), tuple(jobs), agents, devices)


async def _affected_jobs(
    agents: Mapping[str, Channel], moving: Sequence[str], unreachable: Mapping[str, KawarimiError]
) -> list[Job]:
    names = list(agents)
    listed = await asyncio.gather(
        *(agents[name].ask(AskJobs(), list[JobSummary], ANSWER_MARGIN_S) for name in names)
    )
    where: dict[str, list[str]] = {}
    summaries: dict[str, list[JobSummary]] = {}
    for name, found in zip(names, listed, strict=True):
        for summary in found:
            where.setdefault(summary.job, []).append(name)
            summaries.setdefault(summary.job, []).append(summary)
    jobs = []
    for job, guests in where.items():
        if not set(guests) & set(moving):
            continue
        first = summaries[job][0]
        missing = first.ranks - sum(summary.connected for summary in summaries[job])
        if missing:
            silent = "; ".join(f"{name}: {error.what}" for name, error in unreachable.items())
            raise PreflightRefused(
                Slug.JOB_INCOMPLETE,
                f"{missing} of job {job}'s {first.ranks} ranks are accounted for by no agent.",
                untouched="every guest and every job",
                hint="wait until all have left MPI_Init; start every rank by kawarimi run"
                + (f"; these agents do not answer: {silent}" if silent else ""),
                scope=Scope.JOB,
            )
        detached = State.DETACHED.name.lower()
        on_fabric = any(set(summary.states) - {detached} for summary in summaries[job])
        channels = tuple(agents[guest] for guest in guests)
        jobs.append(Job(job, tuple(guests), first.fabric, first.fallback, on_fabric, channels))
    return jobs


async def _device(
    config: Config, hypervisor: Hypervisor, agent: Channel, move: Move
) -> VerbsDevice | None:
    """Return the verbs device of a guest that holds its HCA; None if it holds none.

    :raise PreflightRefused: `hca-not-ready` where the hypervisor shows an HCA and the guest none.
    """
    if await hypervisor.attached(move.guest) is None:
        return None
    found = await agent.ask(AskDevices(), list[VerbsDevice], ANSWER_MARGIN_S)
    spec = config.hca(move.guest, move.source)
    mac = spec.mac.lower() if spec else ""
    for device in found:
        if not mac or device.mac.lower() == mac:
            return device
    raise PreflightRefused(
        Slug.HCA_NOT_READY,
        f"{move.guest} holds an HCA, and its agent sees no verbs device that is it.",
        untouched="every guest and every job",
        hint="look whether its driver is loaded, and at 'mac' in the configuration",
        scope=Scope.DEVICE,
        facts={"expected mac": mac, "seen": [device.name for device in found]},
    )


async def _refuse_foreign_holders(
    agent: Channel, guest: str, device: VerbsDevice, jobs: Sequence[str]
) -> None:
    """Refuse a device that somebody else than these jobs' ranks uses; nothing is touched.

    :raise PreflightRefused: `device-held`.
    """
    ranks = {rank.hello.pid for job in jobs for rank in await find_ranks([agent], job)}
    try:
        await agent.ask(AskReleased(device.name, _HOLDERS_DEADLINE_S), Released, ANSWER_MARGIN_S)
    except KawarimiError as error:
        if error.slug is not Slug.DEVICE_HELD:
            raise
        holders = error.facts.get("holders", [])
        assert isinstance(holders, list)
        foreign = [holder for holder in holders if holder["pid"] not in ranks]
        if foreign:
            raise PreflightRefused(
                Slug.DEVICE_HELD,
                f"In {guest}, {device.name} is used by others than the jobs that can be switched: "
                + "; ".join(f"{holder['process']}, pid {holder['pid']}" for holder in foreign),
                untouched="every guest and every job",
                hint="end them first",
                scope=Scope.DEVICE,
                facts={"holders": foreign},
            ) from error

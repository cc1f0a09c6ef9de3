"""After a guest has arrived: prove that its HCA is usable, and that a message really crosses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from types import NoneType

from kawarimi_bridge.config import Config
from kawarimi_bridge.operation.diary import Diary
from kawarimi_bridge.operation.plan import Job
from kawarimi_bridge.together import all_of
from kawarimi_wire.messages import (
    ANSWER_MARGIN_S,
    AskDevice,
    AskProbeClose,
    AskProbeOpen,
    AskProbeRun,
    Channel,
    ProbeEnd,
    ProbeResult,
    VerbsDevice,
)
from kawarimi_wire.phases import Phase

_PROBE_S = 20.0
"""For one probe: a child process with pyverbs, a connection, two messages."""


async def await_device(
    config: Config, agent: Channel, guest: str, host: str, deadline_s: float
) -> VerbsDevice:
    """Wait until the HCA that a guest has on a host is usable, its address set; return it.

    :raise ExecutionFailed: `hca-not-ready`.
    """
    spec = config.hca(guest, host)
    assert spec is not None, "only where the guest gets an HCA"
    request = AskDevice(spec.mac, spec.address, deadline_s)
    return await agent.ask(request, VerbsDevice, deadline_s + ANSWER_MARGIN_S)


async def reprobe(
    config: Config,
    agents: Mapping[str, Channel],
    hosts: Mapping[str, str],
    pairs: Sequence[tuple[str, str]],
    diary: Diary,
    *,
    deadline_s: float,
) -> None:
    """Prove the fabric between guests: ports ACTIVE, addresses set, and messages between pairs.

    :param hosts: the guests whose HCA is to be proven, each with its host.
    :param pairs: guests that have ranks of the same job; all of them are in `hosts`.
    :raise ExecutionFailed: `hca-not-ready` or `fabric-unreachable`; nothing is left of the probes.
    """
    devices: dict[str, VerbsDevice] = {}

    async def one(guest: str) -> None:
        with diary.phase(Phase.REPROBE, guest) as facts:
            device = await await_device(config, agents[guest], guest, hosts[guest], deadline_s)
            devices[guest] = device
            facts.update(device=device.name, guid=device.guid, addresses=list(device.addresses))

    await all_of(one(guest) for guest in hosts)
    with contextlib.ExitStack() as going_on:
        for guest in sorted({guest for pair in pairs for guest in pair}):
            going_on.enter_context(diary.phase(Phase.REPROBE, guest))
        await exchange(agents, devices, pairs)


async def exchange(
    agents: Mapping[str, Channel],
    devices: Mapping[str, VerbsDevice],
    pairs: Sequence[tuple[str, str]],
) -> None:
    """See a verbs message cross between guests, both ways, pair by pair.

    :param devices: the guests' HCAs, which are usable.
    :raise ExecutionFailed: `fabric-unreachable`; nothing is left of the probes.
    """
    for together in rounds(pairs):
        await all_of(_exchange(agents, devices, pair) for pair in together)


def pairs_of(jobs: Iterable[Job]) -> list[tuple[str, str]]:
    """Pair all guests that have ranks of the same job."""
    return sorted({pair for job in jobs for pair in combinations(sorted(job.guests), 2)})


def rounds(pairs: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Arrange pairs so that nobody is in two pairs of one round."""
    arranged: list[list[tuple[str, str]]] = []
    for pair in pairs:
        for together in arranged:
            if not {name for other in together for name in other} & set(pair):
                together.append(pair)
                break
        else:
            arranged.append([pair])
    return arranged


async def _exchange(
    agents: Mapping[str, Channel], devices: Mapping[str, VerbsDevice], pair: tuple[str, str]
) -> None:
    ends: dict[str, ProbeEnd] = {}

    async def open_(guest: str) -> None:
        address = next(iter(devices[guest].addresses), "").split("/")[0]
        request = AskProbeOpen(devices[guest].name, address, _PROBE_S)
        ends[guest] = await agents[guest].ask(request, ProbeEnd, _PROBE_S + ANSWER_MARGIN_S)

    async def run(guest: str, other: str) -> None:
        request = AskProbeRun(ends[guest].probe, ends[other], _PROBE_S)
        await agents[guest].ask(request, ProbeResult, _PROBE_S + ANSWER_MARGIN_S)

    try:
        await all_of(open_(guest) for guest in pair)
        one, other = pair
        await all_of([run(one, other), run(other, one)])
    finally:
        closing = [
            agents[guest].ask(AskProbeClose(end.probe), NoneType, ANSWER_MARGIN_S)
            for guest, end in ends.items()
        ]
        await asyncio.gather(*closing, return_exceptions=True)

"""Live-migrate one guest between two QEMUs, over QMP.

Every capability is set on both sides each time: QEMU keeps what an earlier role left (a guest that
arrived with multifd would leave with it). The source saying `completed` is the point of no return:
before it, the source can run on; after it, only the destination may run.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import msgspec

from kawarimi_bridge.hca import present
from kawarimi_bridge.migration_parameters import MigrationParameters, Role, configure
from kawarimi_bridge.qmp import Event, Monitor
from kawarimi_wire.errors import (
    ExecutionFailed,
    KawarimiError,
    NeedsCleanup,
    OutcomeUnknown,
    PreflightRefused,
    Scope,
    Slug,
)

_ENDED = frozenset({"completed", "failed", "cancelled", "postcopy-paused"})
_GONE_OVER = frozenset({"postcopy-active", "postcopy-paused", "postcopy-recover"})
"""The guest runs at the destination, and part of its memory is still at the source."""
_BUSY = _GONE_OVER | {"setup", "active", "device", "pre-switchover", "wait-unplug", "cancelling"}
_FIRST_REPEATED_PASS = 2
"""QEMU counts passes from 1; in the second one, all memory has been sent once."""
_POLL_S = 1.0
"""How often the source is asked beside its events, which say nothing of the bytes moved."""
_FIGURES_POLL_S = 0.01
_SETTLE_S = 20.0
"""For a side that has nothing left to do but to say so: a cancel, a resume."""


class MigrationProgress(msgspec.Struct, frozen=True):
    """What a migration has moved so far; bytes, and bytes per second.

    :ivar paused: whether the guest stands still, for the last of it.
    """

    status: str
    transferred: int
    remaining: int
    rate: float
    paused: bool


class MigrationResult(msgspec.Struct, frozen=True):
    """A completed migration, by QEMU's own account: seconds, bytes.

    :ivar paused: when the guest stood still, by the monotonic clock of whoever watched: from the
        source's STOP to the destination's RESUME, as these events came here.
    """

    total_s: float
    downtime_s: float
    setup_s: float
    transferred: int
    paused: tuple[float, float] | None


async def listen(destination: Monitor, address: str, parameters: MigrationParameters) -> str:
    """Make a destination QEMU (started with `-incoming defer`) listen.

    :param address: where, as an IP address; QEMU chooses the port.
    :return: the URI for the source, with the port that QEMU chose.
    :raise PreflightRefused: `migration-busy` if the QEMU does not wait for a guest.
    :raise ExecutionFailed: `migration-listen-failed`.
    """
    status = (await destination.execute("query-status"))["status"]
    if status != "inmigrate":
        raise PreflightRefused(
            Slug.MIGRATION_BUSY,
            f"The destination {destination.name} does not wait for a guest: it is {status}.",
            untouched="both guests",
            hint="start it with '-incoming defer'",
            scope=Scope.GUEST,
        )
    await configure(destination, parameters, Role.DESTINATION)
    try:
        await destination.execute("migrate-incoming", {"uri": f"tcp:{address}:0"})
    except OutcomeUnknown:
        raise
    except ExecutionFailed as error:
        raise ExecutionFailed(
            Slug.MIGRATION_LISTEN_FAILED,
            f"The destination {destination.name} cannot listen on {address}: "
            f"{error.facts.get('said', error.what)}",
            untouched="the source runs on",
            hint="is it an address of the destination host?",
            scope=Scope.GUEST,
        ) from error
    (listener,) = (await destination.execute("query-migrate"))["socket-address"]
    return f"tcp:{listener['host']}:{listener['port']}"


async def migrate(
    source: Monitor,
    destination: Monitor,
    address: str,
    *,
    hca_slots: list[str],
    parameters: MigrationParameters | None = None,
    deadline_s: float,
    on_progress: Callable[[MigrationProgress], None] | None = None,
) -> MigrationResult:
    """Move the guest of `source` into `destination`, and return when it runs there.

    The source QEMU is left in the state `postmigrate`, for the caller to quit; it must never be
    continued (`resume` refuses). If this fails before the point of no return the guest runs on in
    the source, and the destination is of no more use.

    :param address: an IP address of the destination host that the source reaches.
    :param hca_slots: the slots that must be empty, since their devices cannot be migrated.
    :param deadline_s: seconds for the migration, after which it is cancelled.
    :raise PreflightRefused: `hca-attached`, `migration-busy`; nothing has changed.
    :raise ExecutionFailed: `migration-listen-failed`, `migration-failed`, `migration-cancelled`
        or `migration-timeout`; the guest runs on in the source.
    :raise NeedsCleanup: `migration-failed` if the source completed and the destination does not
        run: the guest is in neither, and must be looked at.
    """
    parameters = parameters or MigrationParameters()
    await refuse_unmovable(source, hca_slots)
    uri = await listen(destination, address, parameters)
    await configure(source, parameters, Role.SOURCE)
    started = time.monotonic()
    async with source.watch(["MIGRATION", "MIGRATION_PASS", "STOP"]) as events:
        try:
            await source.execute("migrate", {"uri": uri})
            postcopy = parameters.postcopy
            status = await _follow(source, events.wait, started + deadline_s, on_progress, postcopy)
        except BaseException:
            # Whatever ended the wait (an error, Ctrl-C), the migration must not go on unwatched.
            if not source.gone:
                await _cancel(source)
            raise
    timed_out = status is None
    if status is None:
        status = await _cancel(source)
    if status in _GONE_OVER:
        raise _stuck_between(source, destination, status)
    if status != "completed":
        info = await source.execute("query-migrate")
        await _confirm_source_runs(source)
        raise _not_completed(source, status, info, deadline_s if timed_out else None)
    await _await_arrival(destination)
    info = await _final_figures(source)
    stopped, resumed = source.seen("STOP"), destination.seen("RESUME")
    return MigrationResult(
        total_s=info["total-time"] / 1000,
        downtime_s=info["downtime"] / 1000,
        setup_s=info["setup-time"] / 1000,
        transferred=info["ram"]["transferred"],
        paused=(stopped, resumed) if stopped and resumed and started < stopped else None,
    )


async def refuse_unmovable(source: Monitor, hca_slots: list[str]) -> None:
    """Refuse a guest that cannot be migrated as it is; nothing is touched.

    :raise PreflightRefused: `hca-attached` or `migration-busy`.
    """
    for slot in hca_slots:
        inside = await present(source, slot)
        if inside is not None:
            raise PreflightRefused(
                Slug.HCA_ATTACHED,
                f"{source.name} holds the HCA {inside}, which cannot be migrated.",
                untouched="the guest runs on with its HCA",
                hint="unplug the HCA first; 'kawarimi migrate' does that",
                scope=Scope.DEVICE,
                facts={"slot": slot, "hca": inside},
            )
    info = await source.execute("query-migrate")
    reasons = info.get("blocked-reasons", [])
    if reasons:
        raise PreflightRefused(
            Slug.HCA_ATTACHED,
            f"{source.name} cannot be migrated: {'; '.join(reasons)}.",
            untouched="the guest runs on",
            hint="unplug the device that blocks it",
            scope=Scope.DEVICE,
            facts={"reasons": reasons},
        )
    await refuse_busy(source)


async def refuse_busy(source: Monitor) -> None:
    """Refuse a guest that is on its way, or not here; nothing is touched.

    :raise PreflightRefused: `migration-busy`.
    """
    info = await source.execute("query-migrate")
    status = (await source.execute("query-status"))["status"]
    if info.get("status") in _BUSY or status in ("inmigrate", "postmigrate", "finish-migrate"):
        raise PreflightRefused(
            Slug.MIGRATION_BUSY,
            f"{source.name} is {status}, its migration is {info.get('status', 'none')}.",
            untouched="the guest",
            hint="wait for its migration to end",
            scope=Scope.GUEST,
        )


async def resume(monitor: Monitor) -> None:
    """Continue a guest whose vCPUs are stopped; it runs when this returns.

    :raise PreflightRefused: `split-brain-refused` where the guest has left for another host: QEMU
        itself would let the same guest run twice.
    """
    status = (await monitor.execute("query-status"))["status"]
    migration = (await monitor.execute("query-migrate")).get("status")
    if status == "postmigrate" or (migration == "completed" and status != "running"):
        raise PreflightRefused(
            Slug.SPLIT_BRAIN_REFUSED,
            f"The guest of {monitor.name} runs elsewhere; continuing it here would run it twice.",
            untouched="both QEMUs",
            scope=Scope.GUEST,
        )
    await monitor.execute("cont")


async def _follow(
    source: Monitor,
    wait: Any,
    give_up: float,
    on_progress: Callable[[MigrationProgress], None] | None,
    postcopy: bool,
) -> str | None:
    """Wait for the end and return it; None at the deadline.

    Asked every second beside the events: `migrate` to a dead listener returns success, and its
    failure stands only in query-migrate.
    """
    paused = False
    while (left := give_up - time.monotonic()) > 0:
        event = await wait(min(left, _POLL_S), _is_turn)
        paused = paused or (event is not None and event["event"] == "STOP")
        info = await source.execute("query-migrate")
        if on_progress and (ram := info.get("ram")):
            rate = float(ram.get("mbps", 0.0)) * 1e6 / 8
            on_progress(
                MigrationProgress(
                    info["status"], ram["transferred"], ram["remaining"], rate, paused
                )
            )
        if info["status"] in _ENDED:
            return str(info["status"])
        if postcopy and event is not None and event["event"] == "MIGRATION_PASS":
            if event["data"]["pass"] < _FIRST_REPEATED_PASS:
                continue
            postcopy = False
            with contextlib.suppress(ExecutionFailed):  # it may just have completed by itself
                await source.execute("migrate-start-postcopy")
    return None


def _is_turn(event: Event) -> bool:
    """Whether an event ends a migration, or a pass over the guest's memory, or stops the guest."""
    return event["event"] != "MIGRATION" or event["data"]["status"] in _ENDED


async def _cancel(source: Monitor) -> str:
    """Cancel, and return how the migration ended: it may have completed just before.

    A guest that has gone over is not called back: it runs at the destination, which cannot do
    without the rest of its memory. It is waited for instead.

    :raise OutcomeUnknown: `migration-timeout` if QEMU does not say.
    """
    if (await source.execute("query-migrate")).get("status") not in _GONE_OVER:
        await source.execute("migrate_cancel")
    give_up = time.monotonic() + _SETTLE_S
    async with source.watch(["MIGRATION"]) as events:
        while time.monotonic() < give_up:
            info = await source.execute("query-migrate")
            status = str(info.get("status", "none"))
            if status in _ENDED or status == "none":
                return status
            await events.wait(_POLL_S, lambda event: event["data"]["status"] in _ENDED)
    raise OutcomeUnknown(
        Slug.MIGRATION_TIMEOUT,
        f"{source.name} was told to cancel its migration and is still {status}.",
        hint="ask it with 'query-migrate' before anything else is done",
        scope=Scope.GUEST,
    )


async def _confirm_source_runs(source: Monitor) -> None:
    """Make sure that a guest whose migration did not complete runs on in its source."""
    if not (await source.execute("query-status"))["running"]:
        await resume(source)


def _stuck_between(source: Monitor, destination: Monitor, status: str) -> NeedsCleanup:
    return NeedsCleanup(
        Slug.MIGRATION_FAILED,
        f"The guest of {source.name} runs in {destination.name}, and part of its memory has not "
        f"come: the migration is {status}.",
        untouched="both QEMUs; neither may be ended",
        hint="mend the network between the hosts, then QEMU's 'migrate-recover'",
        scope=Scope.GUEST,
    )


def _not_completed(
    source: Monitor, status: str, info: dict[str, Any], deadline_s: float | None
) -> ExecutionFailed:
    if deadline_s is not None:
        slug, why = Slug.MIGRATION_TIMEOUT, f"it was not done in {deadline_s:.0f} s"
    elif status == "failed":
        slug, why = Slug.MIGRATION_FAILED, info.get("error-desc", "QEMU gives no reason")
    else:
        slug, why = Slug.MIGRATION_CANCELLED, "it was cancelled"
    return ExecutionFailed(
        slug,
        f"The migration of {source.name} did not complete: {why}.",
        untouched="the guest runs on where it was",
        hint="end the destination's QEMU; it is of no more use",
        scope=Scope.GUEST,
        facts={"status": status},
    )


async def _final_figures(source: Monitor) -> dict[str, Any]:
    """Return query-migrate's answer for a completed migration, once its figures are computed.

    QEMU says `completed` first, computes total and downtime next, and becomes `postmigrate` last
    (migration/migration.c: migration_completion, then migration_iteration_finish): asked in
    between, it answers zeros.
    """
    give_up = time.monotonic() + _SETTLE_S
    while (await source.execute("query-status"))["status"] != "postmigrate":
        if time.monotonic() >= give_up:
            break  # the guest has arrived all the same; the figures are the best there are
        await asyncio.sleep(_FIGURES_POLL_S)
    return dict(await source.execute("query-migrate"))


async def _await_arrival(destination: Monitor) -> None:
    """Return once the destination runs the guest."""
    why: object = "it did not run in time"
    try:
        async with destination.watch(["RESUME"]) as events:
            give_up = time.monotonic() + _SETTLE_S
            while (left := give_up - time.monotonic()) > 0:
                if (await destination.execute("query-status"))["running"]:
                    return
                await events.wait(min(left, _POLL_S), lambda _: True)
    except KawarimiError as error:
        why = error.what
    raise NeedsCleanup(
        Slug.MIGRATION_FAILED,
        f"The guest has left its source, and the destination {destination.name} does not run it: "
        f"{why}",
        hint="look at the destination's log; do not continue the source while it may yet run",
        scope=Scope.GUEST,
    )

"""Plug and unplug an HCA of a running guest, over QMP, and know afterwards whether it is there.

The waiter is armed before every request, and after every event QEMU is asked again: `device_del`
returning means "requested", and an event alone is not proof (the pattern is nova's, from
virt/libvirt/guest.py; QEMU's own account is docs/system/device-emulation.rst and qdev.json).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from kawarimi_bridge.qmp import Event, Monitor
from kawarimi_wire.errors import ExecutionFailed, OutcomeUnknown, PreflightRefused, Scope, Slug

UNPLUG_REPEAT_S = 10.0
"""A request that reaches a guest before its hot-plug driver is up is lost (early boot), so that it
is made again. Not sooner: a native PCIe slot takes a second press of its attention button within
five seconds for "never mind" (PCIe base specification 6.7.1.5)."""

PLUG_DEADLINE_S = 120.0
"""For QEMU to answer `device_add`: with vfio-pci it pins all of the guest's memory first, which
takes longer the more there is, and answers nothing meanwhile."""

_PENDING = "already in the process of unplug"
"""QEMU's answer while an earlier request is pending (softmmu/qdev-monitor.c, qmp_device_del)."""


@dataclass(frozen=True)
class Hca:
    """An HCA as QEMU is told of it.

    `slot` is the id of the `pcie-root-port` that it goes into; `driver` is `vfio-pci` for a real
    one; `properties` are the driver's own (`host` for vfio-pci; `netdev`, `mac` for a stand-in).
    """

    id: str
    slot: str
    driver: str
    properties: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Unplugged:
    """How an unplug went: seconds from the request to the proof, and how often it was requested."""

    duration_s: float
    requests: int


async def present(monitor: Monitor, slot: str) -> str | None:
    """Return the id of the device in a slot, or None if the slot is empty.

    A device without an id is returned by its QOM name, `device[N]`. Asked of QEMU's object tree:
    query-pci does not see behind a port before the guest's firmware has numbered its bus.

    :raise PreflightRefused: `hca-slot-missing`.
    """
    ports = await monitor.execute("qom-list", {"path": "/machine/peripheral"})
    if slot not in (entry["name"] for entry in ports):
        raise PreflightRefused(
            Slug.HCA_SLOT_MISSING,
            f"{monitor.name} has no PCIe root port {slot!r}.",
            untouched="the guest",
            hint="start the guest with '-device pcie-root-port,id=…' for each HCA",
            scope=Scope.DEVICE,
            facts={"slot": slot},
        )
    for container in ("/machine/peripheral", "/machine/peripheral-anon"):
        for entry in await monitor.execute("qom-list", {"path": container}):
            if not entry["type"].startswith("child<"):
                continue
            path = f"{container}/{entry['name']}"
            bus = await monitor.execute("qom-get", {"path": path, "property": "parent_bus"})
            if bus.startswith(f"/machine/peripheral/{slot}/"):
                return str(entry["name"])
    return None


async def refuse_unusable(monitor: Monitor, hca: Hca) -> None:
    """Refuse an HCA that a QEMU could never take: its slot, its driver, its driver's properties.

    Asked of any QEMU of the guest, with or without that HCA's host.

    :raise PreflightRefused: `hca-slot-missing` or `hca-unusable`; nothing has changed.
    """
    await present(monitor, hca.slot)
    try:
        known = await monitor.execute("device-list-properties", {"typename": hca.driver})
    except OutcomeUnknown:
        raise
    except ExecutionFailed as error:
        if error.slug is not Slug.QMP_REFUSED:
            raise
        raise unusable(hca, f"QEMU has no device {hca.driver!r}: {error.facts['said']}") from error
    unknown = set(hca.properties) - {str(entry["name"]) for entry in known}
    if unknown:
        names = ", ".join(map(repr, sorted(unknown)))
        raise unusable(hca, f"{hca.driver} has no property {names}.")


def unusable(hca: Hca, why: str) -> PreflightRefused:
    """Return the error for an HCA whose specification cannot be right."""
    return PreflightRefused(
        Slug.HCA_UNUSABLE,
        f"The HCA {hca.id} cannot be plugged as it is specified: {why}",
        untouched="the guest",
        hint="correct its table in the configuration; 'qemu-system-x86_64 -device DRIVER,help' "
        "lists a driver's properties",
        scope=Scope.DEVICE,
        facts={"driver": hca.driver, "properties": dict(hca.properties)},
    )


async def plug(monitor: Monitor, hca: Hca, *, deadline_s: float = PLUG_DEADLINE_S) -> None:
    """Plug an HCA; QEMU shows it in its slot when this returns. The guest may not have seen it yet.

    :param deadline_s: seconds for QEMU to take it.
    :raise PreflightRefused: `hca-slot-missing`, `hca-slot-occupied`, or `plug-refused` because the
        guest has not arrived: QEMU accepts a device for an incoming guest, which then never sees
        it. Nothing has changed.
    :raise ExecutionFailed: `plug-refused` with QEMU's words; nothing has changed.
    :raise OutcomeUnknown: `qmp-timeout`.
    """
    status = (await monitor.execute("query-status"))["status"]
    if status == "inmigrate":
        raise PreflightRefused(
            Slug.PLUG_REFUSED,
            f"{monitor.name} waits for a guest to arrive; what is plugged now, it would never see.",
            untouched="the guest",
            hint="plug the HCA after the migration has completed",
            scope=Scope.DEVICE,
        )
    inside = await present(monitor, hca.slot)
    if inside is not None:
        raise PreflightRefused(
            Slug.HCA_SLOT_OCCUPIED,
            f"The slot {hca.slot!r} of {monitor.name} holds {inside} already.",
            untouched="the guest",
            scope=Scope.DEVICE,
            facts={"slot": hca.slot, "holds": inside},
        )
    arguments = {"driver": hca.driver, "id": hca.id, "bus": hca.slot, **hca.properties}
    try:
        await monitor.execute("device_add", arguments, deadline_s=deadline_s)
    except OutcomeUnknown:
        raise
    except ExecutionFailed as error:
        if error.slug is not Slug.QMP_REFUSED:
            raise
        raise ExecutionFailed(
            Slug.PLUG_REFUSED,
            f"{monitor.name} refused to plug {hca.id}: {error.facts['said']}",
            untouched="the guest",
            hint="check the HCA's specification",
            scope=Scope.DEVICE,
            facts={"arguments": arguments},
        ) from error
    if await present(monitor, hca.slot) != hca.id:
        raise OutcomeUnknown(
            Slug.PLUG_REFUSED,
            f"{monitor.name} took {hca.id} and does not show it in {hca.slot!r}.",
            hint="look with 'query-pci'",
            scope=Scope.DEVICE,
        )


async def unplug(
    monitor: Monitor,
    hca_id: str,
    slot: str,
    *,
    deadline_s: float,
    repeat_s: float = UNPLUG_REPEAT_S,
) -> Unplugged:
    """Unplug an HCA; QEMU no longer has it when this returns.

    Whoever uses the device in the guest must have let it go: the kernel waits for verbs users, and
    a guest whose device is pulled from under traffic may never answer again.

    :param deadline_s: seconds for the guest to let go.
    :param repeat_s: seconds after which an unanswered request is made again.
    :raise PreflightRefused: `hca-absent` or `hca-slot-missing`; nothing was requested.
    :raise ExecutionFailed: `unplug-refused`, the guest said no and has the device still.
    :raise OutcomeUnknown: `unplug-timeout`: the guest has not answered, has the device still, and
        may let go of it at any later time.
    """
    if await present(monitor, slot) != hca_id:
        raise PreflightRefused(
            Slug.HCA_ABSENT,
            f"{monitor.name} has no {hca_id!r} in its slot {slot!r}.",
            untouched="the guest",
            scope=Scope.DEVICE,
            facts={"slot": slot, "hca": hca_id},
        )

    def concerns_hca(event: Event) -> bool:
        # A virtio device sends two DEVICE_DELETED. The first is its inner device's and names no
        # `device`; only the second says that the PCI device is gone.
        return bool(event["data"].get("device") == hca_id)

    started = time.monotonic()
    requests = 0
    async with monitor.watch(["DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"]) as events:
        while (left := started + deadline_s - time.monotonic()) > 0:
            await _request_unplug(monitor, hca_id)
            requests += 1
            event = await events.wait(min(left, repeat_s), concerns_hca)
            if event is not None and event["event"] == "DEVICE_UNPLUG_GUEST_ERROR":
                raise ExecutionFailed(
                    Slug.UNPLUG_REFUSED,
                    f"The guest {monitor.name} refused to let {hca_id} go.",
                    untouched="the HCA is in the guest",
                    hint="see the guest's kernel log",
                    scope=Scope.DEVICE,
                    facts={"hca": hca_id, "requests": requests},
                )
            # Asked also where no event came: some paths send none.
            if await present(monitor, slot) is None:
                return Unplugged(time.monotonic() - started, requests)
    status = await monitor.execute("query-status")
    raise OutcomeUnknown(
        Slug.UNPLUG_TIMEOUT,
        f"The guest {monitor.name} has not let {hca_id} go in {deadline_s:.0f} s.",
        untouched="the HCA is in the guest still; the guest may let go of it later",
        hint=(
            "the guest's vCPUs are stopped: continue it"
            if not status["running"]
            else "does a process in the guest hold the device? see 'rdma resource show' there"
        ),
        scope=Scope.DEVICE,
        facts={
            "hca": hca_id,
            "slot": slot,
            "requests": requests,
            "waited_s": round(time.monotonic() - started, 1),
            "guest_status": status["status"],
        },
    )


async def _request_unplug(monitor: Monitor, hca_id: str) -> None:
    """Press the button; a request that is pending, or a device just gone, is as good."""
    try:
        await monitor.execute("device_del", {"id": hca_id})
    except OutcomeUnknown:
        raise
    except ExecutionFailed as error:
        pending = error.slug is Slug.QMP_REFUSED and _PENDING in str(error.facts["said"])
        gone = error.facts.get("class") == "DeviceNotFound"
        if not pending and not gone:
            raise

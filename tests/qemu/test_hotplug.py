"""The HCA is really plugged and unplugged, and nobody believes it without asking."""

from __future__ import annotations

import asyncio
import json
import statistics
import time

import pytest

from kawarimi_bridge import hca
from kawarimi_testbed import qemu
from kawarimi_testbed.topology import HcaVariant, HostSpec, Topology
from kawarimi_wire.errors import ExecutionFailed, OutcomeUnknown, PreflightRefused, Slug

ROUNDS = 10


def events(testbed, process: str) -> list[dict]:
    lines = (testbed.logs / process / "qmp.log").read_text().splitlines()
    return [entry["event"] for entry in map(json.loads, lines) if "event" in entry]


async def test_ten_rounds_of_each_variant(start_testbed, figure):
    """Side by side, in a testbed each: most of the time is the guests' own waiting."""

    async def rounds(variant: HcaVariant) -> None:
        topology = Topology(name=f"hot{variant}", guests=1, hca=variant)
        async with start_testbed(topology) as testbed:
            vm1 = testbed.guest("vm1")
            unplugged, active = [], []
            for _ in range(ROUNDS):
                unplugged.append((await vm1.unplug()).duration_s)
                assert (await vm1.run("rdma link show")).stdout == ""
                assert await hca.present(vm1.monitor, qemu.HCA_SLOT) is None
                plugged = time.monotonic()
                await vm1.plug()
                await vm1.wait_verbs()
                active.append(time.monotonic() - plugged)
            deleted = [e for e in events(testbed, "vm1@hosta") if e["event"] == "DEVICE_DELETED"]
            named = [event for event in deleted if event["data"].get("device") == qemu.HCA_ID]
            assert len(named) == ROUNDS
            if variant is not HcaVariant.E1000E:  # virtio's inner device goes first, unnamed
                assert len(deleted) == 2 * ROUNDS
        figure(f"{variant}: unplug {spread(unplugged)}, plug to ACTIVE {spread(active)}")

    async with asyncio.TaskGroup() as group:
        for variant in HcaVariant:
            group.create_task(rounds(variant))


def spread(seconds: list[float]) -> str:
    median = statistics.median(seconds)
    return f"{min(seconds):.2f}/{median:.2f}/{max(seconds):.2f} s (min/median/max)"


async def test_an_unplug_lost_in_early_boot_is_repeated(start_testbed, image):
    """A request before the guest's hot-plug driver is up has no effect: it is made again."""
    topology = Topology(name="early", guests=1, hosts=(HostSpec("hosta", "fabrica"),))
    async with start_testbed(topology, wait=False) as testbed:
        vm1 = testbed.guest("vm1")
        # The firmware runs: QEMU answers, and no kernel is there to hear of it.
        gone = await hca.unplug(vm1.monitor, qemu.HCA_ID, qemu.HCA_SLOT, deadline_s=90, repeat_s=3)
        assert gone.requests > 1
        await vm1.wait_ready()
        assert (await vm1.run("rdma link show")).stdout == ""


async def test_an_unplug_that_is_never_acknowledged(vm1):
    await vm1.monitor.execute("stop")
    try:
        with pytest.raises(OutcomeUnknown) as caught:
            await vm1.unplug(deadline_s=2)
    finally:
        await vm1.monitor.execute("cont")
    error = caught.value
    assert error.slug is Slug.UNPLUG_TIMEOUT
    assert error.facts["guest_status"] == "paused"
    assert error.facts["requests"] == 1
    assert "stopped" in error.hint
    # The outcome was unknown, not "no": the guest, running again, lets go of it.
    async with vm1.monitor.watch(["DEVICE_DELETED"]) as deleted:
        if await hca.present(vm1.monitor, qemu.HCA_SLOT) is not None:
            assert await deleted.wait(20, lambda e: e["data"].get("device") == qemu.HCA_ID)
    assert await hca.present(vm1.monitor, qemu.HCA_SLOT) is None


async def test_bad_requests_change_nothing(vm1, testbed):
    mine = qemu.hca(testbed.topology, "hosta", "vm1")
    with pytest.raises(PreflightRefused) as caught:
        await hca.plug(vm1.monitor, mine)
    assert caught.value.slug is Slug.HCA_SLOT_OCCUPIED
    with pytest.raises(PreflightRefused) as caught:
        await hca.unplug(vm1.monitor, "hca9", qemu.HCA_SLOT, deadline_s=5)
    assert caught.value.slug is Slug.HCA_ABSENT
    with pytest.raises(PreflightRefused) as caught:
        await hca.present(vm1.monitor, "no-such-port")
    assert caught.value.slug is Slug.HCA_SLOT_MISSING
    assert await hca.present(vm1.monitor, qemu.HCA_SLOT) == qemu.HCA_ID


async def test_a_wrong_specification_is_refused_with_qemus_words(vm1):
    await vm1.unplug()
    wrong = hca.Hca("hca0", qemu.HCA_SLOT, "vfio-pci", {"host": "ffff:00:00.0"})
    with pytest.raises(ExecutionFailed) as caught:
        await hca.plug(vm1.monitor, wrong)
    assert caught.value.slug is Slug.PLUG_REFUSED
    assert await hca.present(vm1.monitor, qemu.HCA_SLOT) is None

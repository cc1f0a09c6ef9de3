"""What the nested variant shows, run inside the outer guest: a guest with a vfio-pci HCA moves.

The outer guest has the project's own files and programs from the machine that it runs on, and a
NIC behind an IOMMU. That NIC is the HCA: two hosts of an ordinary testbed, which are both in the
outer guest, give it to the guest in turn, as two machines with an HCA each would.

Run as `python -m kawarimi_testbed.vfio.scenario IMAGE PAYLOAD FOLDER`; writes `report.json` and all
logs to the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kawarimi_bridge.cli.output import Progress
from kawarimi_bridge.hca import Unplugged
from kawarimi_bridge.migration import MigrationResult, refuse_unmovable
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.image.build import Image
from kawarimi_testbed.keeper import Description
from kawarimi_testbed.ownership import KeeperClient
from kawarimi_testbed.topology import HcaVariant, HostSpec, Topology
from kawarimi_wire.errors import KawarimiError, PreflightRefused

TOPOLOGY = Topology(
    name="vfio",
    hosts=(HostSpec("hosta", "fabrica"), HostSpec("hostb", "fabrica")),
    guests=1,
    guest_memory_mib=256,
    hca=HcaVariant.E1000E,
    hca_device="0000:01:00.0",
    accelerator="kvm",
)
"""Inside the outer guest. It has one root port, so that the NIC behind it is alone on bus 1."""

PEER = "10.67.1.1"
"""Who answers on the wire behind the NIC."""

REPORT = "report.json"
_NETWORK_DEADLINE_S = 120.0
_BOOT_DEADLINE_S = 300.0
_VERBS_DEADLINE_S = 120.0
_UNPLUG_DEADLINE_S = 60.0
_MIGRATE_DEADLINE_S = 180.0


class Report(msgspec.Struct, kw_only=True):
    """What was seen. `seconds` are the durations of the steps, in order; errors are as `--json`."""

    seconds: dict[str, float] = {}
    hca_before: str = ""
    """Driver and MAC of the NIC under the guest's verbs device."""
    refused_by_slot: dict[str, object] = {}
    refused_by_qemu: dict[str, object] = {}
    unplugged: Unplugged | None = None
    verbs_while_unplugged: str = ""
    migration: MigrationResult | None = None
    hca_after: str = ""
    error: dict[str, object] = {}
    """What ended the scenario early; empty if nothing did."""


class _Scenario:
    """One run, with the report that it fills."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._progress = Progress(enabled=True)

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        with self._progress.step(name):
            yield
        self._report.seconds[name] = round(time.monotonic() - started, 2)

    async def run(self, image: Image, payload: Path, logs: Path) -> None:
        """Boot the guest, move it, and take everything down."""
        with self._step("inner network"):
            description = Description(TOPOLOGY, str(logs), str(image.folder))
            keeper = await KeeperClient.start(description, deadline_s=_NETWORK_DEADLINE_S)
        (keeper.folder / "payload.img").symlink_to(payload)
        guest = Guest(TOPOLOGY, "vm1", keeper, image, logs)
        try:
            await self._boot(guest)
            await self._refuse(guest)
            await self._move(guest)
        except BaseException:
            await guest.save_kernel_log()
            raise
        finally:
            await guest.close()
            await keeper.down()

    async def _boot(self, guest: Guest) -> None:
        with self._step("guest boots"):
            await guest.start("hosta", with_hca=False)
            await guest.wait_ready(_BOOT_DEADLINE_S)
        with self._step("plug"):
            await guest.plug()
        with self._step("verbs ACTIVE"):
            await guest.wait_verbs(_VERBS_DEADLINE_S)
        self._report.hca_before = await _describe_hca(guest)

    async def _refuse(self, guest: Guest) -> None:
        """Try to move the guest with its HCA: our own check says no, and QEMU's does beneath it."""
        with self._step("migration refused, by the slot"):
            try:
                await guest.migrate("hostb")
            except PreflightRefused as error:
                self._report.refused_by_slot = error.as_dict()
        with self._step("migration refused, by QEMU"):
            try:
                await refuse_unmovable(guest.monitor, hca_slots=[])
            except PreflightRefused as error:
                self._report.refused_by_qemu = error.as_dict()

    async def _move(self, guest: Guest) -> None:
        with self._step("unplug"):
            self._report.unplugged = await guest.unplug(_UNPLUG_DEADLINE_S)
        self._report.verbs_while_unplugged = (await guest.run("rdma link show")).stdout
        with self._step("migrate, its QEMUs' start and end included"):
            self._report.migration = await guest.migrate("hostb", deadline_s=_MIGRATE_DEADLINE_S)
        with self._step("plug again"):
            await guest.plug()
        with self._step("verbs ACTIVE again"):
            await guest.wait_verbs(_VERBS_DEADLINE_S)
        self._report.hca_after = await _describe_hca(guest)


async def _describe_hca(guest: Guest) -> str:
    """Return driver and MAC of the NIC under the verbs device, once data has crossed it both ways.

    :raise ExecutionFailed: `command-failed` if the peer does not answer.
    """
    done = await guest.run(
        f"busybox ping -q -c 2 -W 5 {PEER} >&2 && "
        "nic=/sys/class/net/$(cat /sys/class/infiniband/rxe0/parent) && "
        "basename $(readlink $nic/device/driver) && cat $nic/address"
    )
    return " ".join(done.stdout.split())


def main() -> None:
    """Run the scenario and write its report, whatever comes of it."""
    image, payload, folder = (Path(word) for word in sys.argv[1:])
    report = Report()
    try:
        asyncio.run(_Scenario(report).run(Image(image), payload, folder))
    except KawarimiError as error:
        report.error = error.as_dict()
    (folder / REPORT).write_bytes(msgspec.json.encode(report))


if __name__ == "__main__":
    main()

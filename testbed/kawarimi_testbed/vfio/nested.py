"""The outer guest: an emulated machine with an IOMMU, virtualisation and a NIC to pass through.

Everything is emulated (TCG), AMD's SVM included, so that this runs where there is neither an IOMMU
nor KVM; its guest runs under KVM in it. It is one process that ends by itself and has no network:
it reads this machine's files over 9p, and writes to the folder of its logs only.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from kawarimi_bridge.cli.output import Progress
from kawarimi_testbed.commands import Programs, require_programs, require_root
from kawarimi_testbed.image.build import Image
from kawarimi_testbed.image.rootfs import write_image
from kawarimi_testbed.paths import state_dir
from kawarimi_testbed.payload import write_payload
from kawarimi_testbed.qemu import KERNEL_ARGUMENTS, disk
from kawarimi_testbed.vfio.scenario import PEER, REPORT, TOPOLOGY, Report
from kawarimi_wire.errors import ExecutionFailed, KawarimiError, Slug

DEADLINE_S = 600.0
"""For the outer guest, from its start to its end."""

_PROGRAMS = ["ip", "mkfs.ext4", "mpicc", "qemu-system-x86_64", "setpriv"]
_LOGS_INSIDE = "/run/logs"
_TAIL_LINES = 5


def run_nested(image: Image, progress: Progress) -> Report:
    """Run the scenario in an outer guest and return what was seen.

    Nothing of it is left then; on failure its logs stay, and the error names their folder.

    :param image: what both guests boot.
    :raise PreflightRefused: `not-root` or `program-missing`; nothing was started.
    :raise ExecutionFailed: `command-failed` or `command-timeout` if the outer guest did not get to
        the end of the scenario; otherwise the slug of what ended the scenario early.
    """
    require_root("The nested testbed")
    require_programs(_PROGRAMS)
    logs = state_dir() / f"vfio-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    logs.mkdir(parents=True)
    try:
        with tempfile.TemporaryDirectory(prefix="images-", dir=logs) as folder:
            with progress.step("project files for the guests"):
                outer, inner = _write_payloads(Path(folder), image, logs)
            argv = _argv(image, outer, inner, logs)
            with progress.step("the scenario, in the outer guest"):
                Programs(logs / "outer-qemu.log").run(argv, deadline_s=DEADLINE_S)
        report = _read_report(logs)
    except KawarimiError as error:
        error.facts["evidence"] = str(logs)
        raise
    shutil.rmtree(logs)
    return report


def _write_payloads(folder: Path, image: Image, logs: Path) -> tuple[Path, Path]:
    """Return the payload images of the outer guest and of the guest in it."""
    log = logs / "payload.log"
    outer, inner = folder / "outer.img", folder / "inner.img"
    (folder / "inner").mkdir()
    write_payload(TOPOLOGY, folder / "inner", inner, folder / "keys", log)
    guest = folder / "outer" / "guest"
    guest.mkdir(parents=True)
    shutil.copy2(Path(__file__).parent / "outer-init", guest / "init")
    # The inner payload is the outer guest's third disk.
    arguments = [str(image.folder), "/dev/vdc", _LOGS_INSIDE]
    scenario = [sys.executable, "-m", "kawarimi_testbed.vfio.scenario", *arguments]
    (guest / "run").write_text(shlex.join(scenario) + "\n")
    write_image(guest.parent, outer, Programs(log), size="16M")
    return outer, inner


def _argv(image: Image, outer: Path, inner: Path, logs: Path) -> list[str]:
    """Return the outer guest's command line."""
    network, _, _ = PEER.rpartition(".")
    return [
        *("qemu-system-x86_64", "-name", "vfio-outer", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
        *("-smp", "2", "-m", "3072", "-no-reboot"),
        *("-kernel", str(image.vmlinux), "-initrd", str(image.initrd)),
        *("-append", f"{KERNEL_ARGUMENTS} intel_iommu=on"),
        *("-device", "intel-iommu,intremap=on"),
        *disk("root", image.rootfs),
        *disk("outer", outer),
        *disk("inner", inner),
        *("-device", "virtio-rng-pci"),
        # The NIC to pass through, and who answers on its wire.
        *("-device", "pcie-root-port,id=hca-port,chassis=1,slot=1"),
        *("-netdev", f"user,id=hca,restrict=on,net={network}.0/24,host={PEER}"),
        *("-device", f"e1000e,bus=hca-port,netdev=hca,mac={TOPOLOGY.hca_mac('hosta', 'vm1')}"),
        *_share("machine", Path("/"), "readonly=on,multidevs=remap"),
        *_share("logs", logs, "readonly=off"),
        *("-serial", f"file:{logs}/outer-console.log"),
    ]


def _share(tag: str, folder: Path, options: str) -> list[str]:
    return ["-virtfs", f"local,path={folder},mount_tag={tag},security_model=none,{options}"]


def _read_report(logs: Path) -> Report:
    """Return the report.

    :raise ExecutionFailed: `command-failed` if there is none, or what ended the scenario early.
    """
    if not (logs / REPORT).exists():
        log = logs / "scenario.log"
        if not log.exists():  # the outer guest did not get as far as that
            log = logs / "outer-console.log"
        said = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        raise ExecutionFailed(
            Slug.COMMAND_FAILED,
            "The outer guest ended without a report:\n  " + "\n  ".join(said),
            hint=f"see {log}",
        )
    report = msgspec.json.decode((logs / REPORT).read_bytes(), type=Report)
    if report.error:
        raise ExecutionFailed(
            Slug(str(report.error["slug"])),
            f"In the outer guest: {report.error['what']}",
            hint=str(report.error["hint"]),
            facts={"seconds": report.seconds, "there": report.error["facts"]},
        )
    return report

"""Build the guest image, or find it built."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kawarimi_bridge.cli.output import Progress
from kawarimi_testbed.commands import Programs, require_programs, require_root, require_space
from kawarimi_testbed.image import kernel, openib, rootfs, versions
from kawarimi_testbed.image.cache import Cache
from kawarimi_testbed.image.debian import Debian
from kawarimi_testbed.image.packages import PACKAGES
from kawarimi_testbed.paths import cache_dir, state_dir
from kawarimi_wire.errors import KawarimiError, PreflightRefused

_PROGRAMS = [
    *("apt-get", "busybox", "cpio", "depmod", "dpkg-deb", "gcc", "mkfs.ext4", "mmdebstrap"),
    *("modprobe", "mpicc", "qemu-system-x86_64", "unshare"),
]
_SPACE_BYTES = 3 * 2**30
_ROOTFS, _VMLINUX, _INITRD = "rootfs.img", "vmlinux", "initrd.img"
_COMPONENT_FOLDER = "usr/lib/x86_64-linux-gnu/openmpi/lib/openmpi3"


@dataclass(frozen=True)
class Image:
    """A built guest image: files that QEMU takes, shared read-only by all guests."""

    folder: Path

    @property
    def rootfs(self) -> Path:
        """Return the ext4 root file system."""
        return self.folder / _ROOTFS

    @property
    def vmlinux(self) -> Path:
        """Return the ELF kernel."""
        return self.folder / _VMLINUX

    @property
    def initrd(self) -> Path:
        """Return the initrd."""
        return self.folder / _INITRD


def build_image(progress: Progress, *, rebuild: bool = False) -> Image:
    """Return the guest image of this machine's Debian, built if it is not in the cache.

    Needs root, the network if it has to be built, and 3 GiB of disk while building.

    :param rebuild: build it anew even if it is there.
    :raise PreflightRefused: `not-root`, `program-missing`, `no-space`, `package-lists-missing` or
        `cache-corrupt`; nothing was made.
    :raise ExecutionFailed: `command-failed`, `command-timeout` or `build-failed`; the cache is as
        it was, and the error names the log of what was run.
    """
    require_root("Building the guest image")
    require_programs(_PROGRAMS)
    cache = Cache(cache_dir())
    with _log_kept_on_failure() as log, tempfile.TemporaryDirectory(prefix="kawarimi-") as scratch:
        debian = Debian(Path(scratch), Programs(log, scratch=Path(scratch)))
        state = versions.apt_state(PACKAGES)
        known = versions.recall(state)
        if known is None:
            with progress.step("asking apt for versions"):
                packages = debian.closure([*PACKAGES, debian.kernel_package()])
            known = versions.Versions(state, packages)
        inputs = _inputs(debian, known.packages)
        found = None if rebuild else cache.find("image", inputs)

        def builder(folder: Path) -> None:
            require_space(folder, _SPACE_BYTES, "Building the guest image")
            _build(folder, progress, log)

        folder = found or cache.build("image", inputs, builder, rebuild=rebuild)
        versions.note(known)
        return Image(folder)


@contextlib.contextmanager
def _log_kept_on_failure() -> Iterator[Path]:
    """Yield a log outside everything that a build removes; it stays only if the build fails."""
    log = state_dir() / f"build-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield log
    except (PreflightRefused, KeyboardInterrupt):  # nothing was begun, or the operator's wish
        log.unlink(missing_ok=True)
        raise
    except KawarimiError as error:
        error.facts["log"] = str(log)
        raise
    else:
        log.unlink()


def _inputs(debian: Debian, packages: list[str]) -> dict[str, str]:
    """Return what an image is made of: every package's version, and the code that makes it."""
    return {
        "packages": hashlib.sha256("\n".join(packages).encode()).hexdigest(),
        "openmpi": debian.source_version("libopenmpi-dev"),
        **{
            str(path.relative_to(Path(__file__).parent)): hashlib.sha256(
                path.read_bytes()
            ).hexdigest()
            for path in sorted(Path(__file__).parent.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        },
    }


def _build(folder: Path, progress: Progress, log: Path) -> None:
    """Make the three files in a folder; everything intermediate is below it and removed."""
    work = folder / "work"
    root = work / "root"
    work.mkdir()
    programs = Programs(log, scratch=work)
    debian = Debian(work, programs)

    def make_openib() -> Path:
        scratch = work / "openib"
        scratch.mkdir()
        return openib.build(debian, scratch, programs)

    with ThreadPoolExecutor() as pool:
        # The bootstrap waits for dpkg most of the time; the component compiles beside it.
        component = pool.submit(make_openib)
        try:
            with progress.step("installing Debian (mmdebstrap)"):
                rootfs.bootstrap(debian, root, programs)
            with progress.step("openib with rdmacm, from Debian's source"):
                shutil.copy2(component.result(), root / _COMPONENT_FOLDER)
        except BaseException:
            programs.end()  # leaving the pool waits for its threads
            raise
    with progress.step("kernel, modules, initrd"):
        unpacked = kernel.extract(debian, work, programs)
        kernel.write_vmlinux(unpacked, folder / _VMLINUX)
        kernel.copy_modules(unpacked, root, programs)
        kernel.write_initrd(
            unpacked, Path(__file__).parent / "initrd-init", work, folder / _INITRD, programs
        )
    with progress.step("writing the file system"):
        for mount_point in ("opt/kawarimi", "host"):
            (root / mount_point).mkdir(parents=True)
        rootfs.write_image(root, folder / _ROOTFS, programs)
    programs.run(["rm", "-rf", "--one-file-system", work], deadline_s=60)

"""The guest's kernel, its modules and its initrd, from Debian's kernel package.

The kernel is booted as the uncompressed ELF `vmlinux` through QEMU's PVH entry: under emulation
the decompressor of the bzImage alone costs several seconds.
"""

from __future__ import annotations

import bz2
import lzma
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

from kawarimi_testbed.commands import Programs
from kawarimi_testbed.image.debian import Debian
from kawarimi_wire.errors import ExecutionFailed, Slug

BOOT_MODULES = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "overlay"]
"""Loaded by the initrd. ext4 asks for crc32c through the crypto API, which no dependency shows."""

ROOT_MODULES = [
    *("virtio_net", "virtio_rng", "e1000e"),
    *("rdma_rxe", "crc32_generic", "ib_uverbs", "rdma_ucm"),
    # The outer guest of the nested variant: KVM on AMD, passthrough, the host's files over 9p.
    *("kvm_amd", "vfio_pci", "vfio_iommu_type1", "9p", "9pnet_virtio", "tun", "bridge", "veth"),
]
"""Copied to the root file system. Nothing autoloads them: the guest's init names what it wants."""

_DEADLINE_S = 120.0
_COMPRESSIONS: list[tuple[bytes, Callable[[bytes], bytes]]] = [
    (b"\xfd7zXZ\x00", lambda data: lzma.LZMADecompressor().decompress(data)),
    (b"\x1f\x8b\x08", lambda data: zlib.decompressobj(wbits=31).decompress(data)),
    (b"BZh", lambda data: bz2.BZ2Decompressor().decompress(data)),
    (b"\x28\xb5\x2f\xfd", lambda data: _unzstd(data)),
]


def extract(debian: Debian, work: Path, programs: Programs) -> Path:
    """Fetch and unpack Debian's kernel package below a work folder; return the unpacked root."""
    package = debian.download(debian.kernel_package(), work)
    unpacked = work / "kernel"
    programs.run(["dpkg-deb", "-x", package, unpacked], deadline_s=_DEADLINE_S)
    programs.run(["depmod", "-b", unpacked, release(unpacked)], deadline_s=_DEADLINE_S)
    return unpacked


def release(unpacked: Path) -> str:
    """Return the kernel release of an unpacked kernel package, as `uname -r` says it."""
    (modules,) = (unpacked / "lib/modules").iterdir()
    return modules.name


def write_vmlinux(unpacked: Path, target: Path) -> None:
    """Write the ELF kernel that is inside the package's bzImage.

    :raise ExecutionFailed: `build-failed` if no known compression holds an ELF file.
    """
    (bzimage,) = (unpacked / "boot").glob("vmlinuz-*")
    image = bzimage.read_bytes()
    for magic, decompress in _COMPRESSIONS:
        for match in re.finditer(re.escape(magic), image):
            try:
                kernel = decompress(image[match.start() :])
            except (lzma.LZMAError, zlib.error, OSError, subprocess.SubprocessError):
                continue
            if kernel.startswith(b"\x7fELF"):
                target.write_bytes(kernel)
                return
    raise ExecutionFailed(
        Slug.BUILD_FAILED,
        f"{bzimage.name} holds no ELF kernel in a compression that is known here.",
        untouched="the cache",
        hint="report this with the version of the kernel package",
    )


def _unzstd(data: bytes) -> bytes:
    # The stream is followed by other sections of the image, which zstd complains about after it
    # has written everything; what it wrote is judged by the caller.
    return subprocess.run(
        ["zstd", "-d", "-q", "-c"], input=data, capture_output=True, timeout=60, check=False
    ).stdout


def module_files(unpacked: Path, names: list[str], programs: Programs) -> list[Path]:
    """Return the files of modules and of what they need, in the order to load them."""
    files: list[Path] = []
    for name in names:
        shown = programs.run(
            ["modprobe", "-d", unpacked, "-S", release(unpacked), "--show-depends", name],
            deadline_s=_DEADLINE_S,
        )
        for line in shown.splitlines():
            if line.startswith("insmod ") and (path := Path(line.split()[1])) not in files:
                files.append(path)
    return files


def copy_modules(unpacked: Path, root: Path, programs: Programs) -> None:
    """Copy the modules of a guest into a root file system, with their dependency index."""
    for file in module_files(unpacked, [*BOOT_MODULES, *ROOT_MODULES], programs):
        target = root / file.resolve().relative_to(unpacked.resolve())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
    for index in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        source = unpacked / "lib/modules" / release(unpacked) / index
        shutil.copy2(source, root / "lib/modules" / release(unpacked) / index)
    programs.run(["depmod", "-b", root, release(unpacked)], deadline_s=_DEADLINE_S)


def write_initrd(unpacked: Path, init: Path, work: Path, target: Path, programs: Programs) -> None:
    """Write an initrd of busybox, the boot modules and an init script."""
    tree = work / "initrd"
    for folder in ("bin", "modules", "proc", "sys", "dev", "ro", "rw", "root"):
        (tree / folder).mkdir(parents=True)
    shutil.copy2("/bin/busybox", tree / "bin/busybox")
    shutil.copy2(init, tree / "init")
    (tree / "init").chmod(0o755)
    files = module_files(unpacked, BOOT_MODULES, programs)
    for file in files:
        shutil.copy2(file, tree / "modules" / file.name)
    (tree / "modules/order").write_text("".join(f"{file.name}\n" for file in files))
    script = f"find . | cpio --quiet -o -H newc > '{target}'"
    programs.run(["sh", "-c", script], deadline_s=_DEADLINE_S, cwd=tree)

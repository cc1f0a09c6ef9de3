"""The guest's root file system: mmdebstrap, then one ext4 image."""

from __future__ import annotations

from pathlib import Path

from kawarimi_testbed.commands import Programs
from kawarimi_testbed.image.debian import Debian
from kawarimi_testbed.image.packages import PACKAGES

_BOOTSTRAP_DEADLINE_S = 900.0
_MKFS_DEADLINE_S = 120.0
_IMAGE_SIZE = "768M"
"""Size of the file system; the image file is sparse."""

_EXCLUDED = ["doc", "man", "info", "locale", "lintian", "bug"]
_DPKG_OPTIONS = [f"path-exclude=/usr/share/{name}/*" for name in _EXCLUDED]


def bootstrap(debian: Debian, root: Path, programs: Programs) -> None:
    """Install Debian and `PACKAGES` into a folder.

    In mount and process namespaces of its own: whatever ends mmdebstrap, the mounts that it makes
    below the folder go with it, and so do its children.
    """
    fence = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    options = [
        *("--mode=root", "--variant=essential", f"--include={','.join(PACKAGES)}"),
        *("--aptopt=APT::Install-Recommends false", "--dpkgopt=force-unsafe-io"),
        *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
        *(f"--aptopt={setting}" for setting in _transport_settings(programs)),
    ]
    release = next(
        suite.release for suite in debian.suites if "-" not in suite.release
    )  # the base suite, not its updates or its security suite
    lines = [suite.line("deb") for suite in debian.suites]
    programs.run(
        [*fence, "mmdebstrap", *options, release, root, *lines],
        deadline_s=_BOOTSTRAP_DEADLINE_S,
    )


def _transport_settings(programs: Programs) -> list[str]:
    """Return how this machine reaches its mirror (proxies, certificates), as apt settings."""
    dump = programs.run(["apt-config", "dump", "Acquire"], deadline_s=10)
    return [line.rstrip(";") for line in dump.splitlines() if not line.endswith('"";')]


def write_image(root: Path, target: Path, programs: Programs, *, size: str = _IMAGE_SIZE) -> None:
    """Write a folder as an ext4 image."""
    # No journal and no reserved blocks: every guest mounts it read-only.
    programs.run(
        ["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", "-d", root, target, size],
        deadline_s=_MKFS_DEADLINE_S,
    )

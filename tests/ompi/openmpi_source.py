"""Open MPI's source as this machine's distribution packaged it.

Taken from the very package sources that the machine is configured with, through package lists of
our own, so that nothing of the machine's configuration changes. Cached.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from kawarimi_ompi.build import cache_directory

DEADLINE_S = 180


def _as_source_lines(text: str) -> str:
    """One-line format: `deb …` becomes `deb-src …`."""
    return "\n".join(
        re.sub(r"^deb\s", "deb-src ", line)
        for line in text.splitlines()
        if re.match(r"^deb\s", line)
    )


def _as_source_stanzas(text: str) -> str:
    """deb822 format: `Types: deb` becomes `Types: deb-src`."""
    return re.sub(r"^Types:.*$", "Types: deb-src", text, flags=re.MULTILINE)


def _write_lists(directory: Path) -> None:
    apt = Path("/etc/apt")
    directory.mkdir(parents=True)
    lines = [apt / "sources.list", *apt.glob("sources.list.d/*.list")]
    for number, file in enumerate(filter(Path.exists, lines)):
        (directory / f"{number}.list").write_text(_as_source_lines(file.read_text()) + "\n")
    for file in apt.glob("sources.list.d/*.sources"):
        (directory / file.name).write_text(_as_source_stanzas(file.read_text()))


def _installed_version() -> str:
    """The version of the source package that the installed library was made from."""
    query = ["dpkg-query", "-W", "-f", "${source:Version}", "libopenmpi3"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout


def open_mpi_source() -> Path:
    """The unpacked source of the installed Open MPI.

    :raise subprocess.CalledProcessError: apt cannot fetch it; nothing is left behind.
    """
    version = _installed_version()
    directory = cache_directory() / f"openmpi-source-{version}"
    if not directory.exists():
        partial = directory.with_name(f"{directory.name}.{os.getpid()}")
        try:
            _write_lists(partial / "lists")
            for name in ("state/lists/partial", "cache/archives/partial", "source"):
                (partial / name).mkdir(parents=True)
            apt = [
                "apt-get",
                "-q",
                *("-o", "Dir::Etc::SourceList=/dev/null"),
                *("-o", f"Dir::Etc::SourceParts={partial / 'lists'}"),
                *("-o", f"Dir::State::Lists={partial / 'state/lists'}"),
                *("-o", f"Dir::Cache={partial / 'cache'}"),
                *("-o", "APT::Sandbox::User=root"),
            ]
            for arguments in (["update"], ["source", f"openmpi={version}"]):
                subprocess.run(
                    [*apt, *arguments],
                    cwd=partial / "source",
                    check=True,
                    capture_output=True,
                    timeout=DEADLINE_S,
                )
            (partial / "source").rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return next(path for path in directory.iterdir() if path.is_dir())

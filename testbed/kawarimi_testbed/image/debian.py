"""The machine's own Debian package sources, as the guest image uses them.

The image is made of the same release, from the same mirror and with the same settings as the
machine itself, so that Open MPI and the verbs libraries are the same on both, and so that nothing
has to be configured here that the machine's administrator has configured already.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kawarimi_testbed.commands import Programs
from kawarimi_wire.errors import PreflightRefused, Slug

_QUERY_DEADLINE_S = 60.0
_FETCH_DEADLINE_S = 300.0


@dataclass(frozen=True)
class Suite:
    """One line of the machine's Debian package sources."""

    uri: str
    release: str
    component: str

    def line(self, kind: str) -> str:
        """Return the suite as a line of a sources.list; kind is `deb` or `deb-src`."""
        return f"{kind} {self.uri} {self.release} {self.component}"


class Debian:
    """The Debian suites that this machine uses, other vendors' left out."""

    def __init__(self, work: Path, programs: Programs) -> None:
        """Nothing is asked yet.

        :param work: an existing folder for sources lists of our own.
        :param programs: runs apt.
        """
        self._work = work
        self._programs = programs

    @cached_property
    def suites(self) -> list[Suite]:
        """The machine's suites.

        :raise PreflightRefused: `package-lists-missing` where no list was ever fetched.
        """
        fields = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"]
        listing = self._programs.run(
            [*fields, "Created-By: Packages", "Origin: Debian"],
            deadline_s=_QUERY_DEADLINE_S,
        )
        suites = [Suite(*line.split()) for line in sorted(set(listing.splitlines()))]
        if not suites:
            raise PreflightRefused(
                Slug.PACKAGE_LISTS_MISSING,
                "This machine has no Debian package lists to make a guest image from.",
                untouched="nothing was made",
                hint="run 'apt-get update' (on Debian), then this again",
            )
        return suites

    def closure(self, packages: Sequence[str]) -> list[str]:
        """Return the file names, which hold the versions, of all that these packages bring.

        Essential packages are included. Nothing is fetched.
        """
        uris = self._apt_get(
            ["install", "--print-uris", "-qq", "?essential", *packages],
            kind="deb",
            options=["Dir::State::status=/dev/null", "APT::Install-Recommends=false"],
        )
        return sorted(re.findall(r"^'[^']*' (\S+) ", uris, re.MULTILINE))

    def download(self, package: str, into: Path) -> Path:
        """Fetch one binary package into a folder and return its path."""
        self._programs.run(["apt-get", "-q", "download", package], cwd=into,
            deadline_s=_FETCH_DEADLINE_S)  # fmt: skip
        (path,) = into.glob(f"{package}_*.deb")
        return path

    def kernel_package(self) -> str:
        """Return the name of the package that `linux-image-amd64` stands for."""
        listing = self._programs.run(
            ["apt-cache", "depends", "linux-image-amd64"],
            deadline_s=_QUERY_DEADLINE_S,
        )
        (name,) = re.findall(r"Depends: (linux-image-\S+)", listing)
        return str(name)

    def source_version(self, binary_package: str) -> str:
        """Return the source version of an installed binary package."""
        return self._programs.run(
            ["dpkg-query", "-W", "-f", "${source:Version}", binary_package],
            deadline_s=_QUERY_DEADLINE_S,
        )

    def source(self, package: str, version: str) -> Path:
        """Fetch and unpack a source package below the work folder; return the unpacked folder."""
        lists = self._work / "source-lists"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        options = [f"Dir::State::lists={lists}"]
        self._apt_get(["update", "-q"], kind="deb-src", options=options)
        self._apt_get(
            ["source", "-q", "--only-source", f"{package}={version}"],
            kind="deb-src",
            options=options,
        )
        (unpacked,) = (path for path in self._work.glob(f"{package}-*") if path.is_dir())
        return unpacked

    def _apt_get(self, words: Sequence[str], *, kind: str, options: Sequence[str]) -> str:
        """Run apt-get on the Debian suites only, leaving the machine's own state alone."""
        sources = self._work / f"{kind}.list"
        sources.write_text("".join(suite.line(kind) + "\n" for suite in self.suites))
        settings = [f"Dir::Etc::sourcelist={sources}", "Dir::Etc::sourceparts=-", *options]
        argv = ["apt-get", *(word for setting in settings for word in ("-o", setting)), *words]
        return self._programs.run(argv, cwd=self._work, deadline_s=_FETCH_DEADLINE_S)

"""A cache of built folders: complete or absent, and checked before it is used.

An entry is a folder `<kind>-<key>` with the built files and `manifest.json`, which lists the size
and SHA-256 of each. An entry is built in a folder beside it and renamed when it is complete, so
that an interrupted build leaves nothing that looks built. One lock serialises builders; the kernel
drops it with its holder, so that a killed builder blocks nobody, and the next one sweeps up.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from kawarimi_wire.errors import ExecutionFailed, OutcomeUnknown, PreflightRefused, Slug

_MANIFEST = "manifest.json"
_BUILDING = ".building-"
_LOCK_POLL_S = 0.5


class FileRecord(msgspec.Struct, frozen=True):
    """What a file of an entry must look like."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What an entry was built from, and what it holds."""

    inputs: dict[str, str]
    files: dict[str, FileRecord]


def digest(inputs: dict[str, str]) -> str:
    """Return the key of an entry that is built from these inputs."""
    return hashlib.sha256(msgspec.json.encode(inputs, order="deterministic")).hexdigest()[:16]


class Cache:
    """The built folders below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entry(self, kind: str, inputs: dict[str, str]) -> Path:
        """Return the folder where an entry of these inputs is, or would be."""
        return self.root / f"{kind}-{digest(inputs)}"

    def find(self, kind: str, inputs: dict[str, str]) -> Path | None:
        """Return an entry's folder after checking every file of it, or None if there is none.

        :raise PreflightRefused: `cache-corrupt` if a file is not what was built.
        """
        folder = self.entry(kind, inputs)
        if not folder.exists():
            return None
        try:
            manifest = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError) as error:
            raise _corrupt(folder, f"its manifest cannot be read ({error})") from error
        for name, record in manifest.files.items():
            path = folder / name
            if not path.exists():
                raise _corrupt(folder, f"{name} is missing")
            if path.stat().st_size != record.size or _sha256(path) != record.sha256:
                raise _corrupt(folder, f"{name} is not what was built")
        return folder

    def build(
        self,
        kind: str,
        inputs: dict[str, str],
        builder: Callable[[Path], None],
        *,
        rebuild: bool = False,
        lock_deadline_s: float = 900.0,
    ) -> Path:
        """Return an entry's folder, calling `builder` with an empty folder if it has to be made.

        :param rebuild: make it anew even if it is there, or corrupt.
        :param lock_deadline_s: how long to wait for another builder.
        :raise OutcomeUnknown: `cache-busy` if another builder holds the lock all that time.
        :raise PreflightRefused: `cache-corrupt`.
        """
        with self._lock(lock_deadline_s):
            folder = self.entry(kind, inputs)
            if not rebuild:
                found = self.find(kind, inputs)
                if found is not None:
                    return found
            self._sweep()
            partial = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self.root))
            try:
                partial.chmod(0o755)
                builder(partial)
                _write_manifest(partial, inputs)
                if folder.exists():
                    shutil.rmtree(folder)
                partial.rename(folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            return folder

    def _sweep(self) -> None:
        """Remove what a killed builder left; called with the lock held, so nobody builds."""
        for left in self.root.glob(f"{_BUILDING}*"):
            shutil.rmtree(left, ignore_errors=True)

    @contextlib.contextmanager
    def _lock(self, deadline_s: float) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock_file = (self.root / "lock").open("w")
        except OSError as error:
            raise ExecutionFailed(
                Slug.BUILD_FAILED,
                f"The cache folder {self.root} cannot be used: {error}.",
                untouched="nothing was built",
                hint="set XDG_CACHE_HOME to a folder that can be written",
            ) from error
        with lock_file:
            give_up = time.monotonic() + deadline_s
            while True:
                try:
                    fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= give_up:
                        raise OutcomeUnknown(
                            Slug.CACHE_BUSY,
                            f"Another build has held {self.root} for {deadline_s:.0f} s.",
                            untouched="nothing was built",
                            hint="wait for it to end, then run this again",
                        ) from None
                    time.sleep(_LOCK_POLL_S)
            yield


def _write_manifest(folder: Path, inputs: dict[str, str]) -> None:
    files = {
        str(path.relative_to(folder)): FileRecord(path.stat().st_size, _sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content = msgspec.json.format(msgspec.json.encode(Manifest(inputs, files)), indent=1)
    with (folder / _MANIFEST).open("wb") as manifest:
        manifest.write(content)
        manifest.flush()
        os.fsync(manifest.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _corrupt(folder: Path, why: str) -> PreflightRefused:
    return PreflightRefused(
        Slug.CACHE_CORRUPT,
        f"The cached {folder.name} is damaged: {why}.",
        untouched="nothing was started, and the cache was left as it is",
        hint="run 'kawarimi testbed build --rebuild'",
        facts={"folder": str(folder)},
    )

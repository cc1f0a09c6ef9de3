"""The folders of operations: where journals and records are written, and found again."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from kawarimi_wire.errors import PreflightRefused, Slug, UsageError
from kawarimi_wire.record import Entry, OperationRecord, Sample

JOURNAL, SAMPLES, RECORD = "journal.jsonl", "samples.jsonl", "record.json"
LOCK = "lock"
"""Held by the process that performs the operation, for as long as it does."""

_T = TypeVar("_T")


def operations_dir() -> Path:
    """Return the folder of all operations: `KAWARIMI_STATE`, or the system's or user's place."""
    if state := os.environ.get("KAWARIMI_STATE"):
        return Path(state) / "operations"
    if os.geteuid() == 0:
        return Path("/var/lib/kawarimi/operations")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "kawarimi/operations"


def new_operation() -> str:
    """Return an id for a new operation; ids sort by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


class OperationFolder:
    """One operation's folder.

    :param folder: it need not exist before the first word is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.operation = folder.name

    @classmethod
    def find(cls, operation: str) -> OperationFolder:
        """Return an operation's folder; `last` is the latest, a beginning of an id is enough.

        :raise UsageError: `unknown-operation`.
        """
        every = cls.all()
        if operation == "last" and every:
            return every[-1]
        found = [folder for folder in every if folder.operation.startswith(operation)]
        if len(found) != 1:
            raise UsageError(
                Slug.UNKNOWN_OPERATION,
                f"{len(found)} operations are called {operation!r}.",
                untouched="nothing was begun",
                hint="'kawarimi report' without a name lists them",
                facts={"candidates": [folder.operation for folder in found]},
            )
        return found[0]

    @classmethod
    def all(cls) -> list[OperationFolder]:
        """Return every operation's folder, the oldest first."""
        parent = operations_dir()
        every = parent.iterdir() if parent.is_dir() else ()
        return [cls(folder) for folder in sorted(every) if folder.is_dir()]

    def write_entry(self, entry: Entry) -> None:
        """Append to the journal; it is on the disk when this returns."""
        self._append(JOURNAL, entry, durable=True)

    def write_sample(self, sample: Sample) -> None:
        """Append a sample; it may be lost with the machine."""
        self._append(SAMPLES, sample, durable=False)

    def write_record(self, record: OperationRecord) -> None:
        """Write the record, whole or not at all."""
        target = self.folder / RECORD
        partial = target.with_suffix(".partial")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1))
        partial.replace(target)

    def entries(self) -> list[Entry]:
        """Return the journal so far; a last line that was cut off by a crash is left out.

        :raise PreflightRefused: `operation-damaged` if another line cannot be read.
        """
        return list(self._lines(JOURNAL, Entry))

    def samples(self) -> list[Sample]:
        """Return the samples so far; as `entries` does."""
        return list(self._lines(SAMPLES, Sample))

    def record(self) -> OperationRecord | None:
        """Return the record; None while the operation runs, or if it was killed.

        :raise PreflightRefused: `operation-damaged` if it cannot be read.
        """
        try:
            content = (self.folder / RECORD).read_bytes()
        except FileNotFoundError:
            return None
        return self._decode(RECORD, content, OperationRecord)

    def _append(self, name: str, line: msgspec.Struct, *, durable: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / name).open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())

    def _lines(self, name: str, kind: type[_T]) -> Iterator[_T]:
        try:
            text = (self.folder / name).read_bytes()
        except FileNotFoundError:
            return
        for line in text.splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield self._decode(name, line, kind)

    def _decode(self, name: str, content: bytes, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PreflightRefused(
                Slug.OPERATION_DAMAGED,
                f"The {name} of operation {self.operation} cannot be read: {error}.",
                untouched="nothing was changed",
                hint="it was damaged, or written by another version of kawarimi",
                facts={"file": str(self.folder / name)},
            ) from error

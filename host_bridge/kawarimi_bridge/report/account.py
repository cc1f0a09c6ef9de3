"""One operation, gathered from its record, or rebuilt from its journal while it has none."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from kawarimi_bridge.locks import holder
from kawarimi_bridge.operations import LOCK, OperationFolder
from kawarimi_wire.phases import PHASES, Mode, Phase, PhaseState, Result
from kawarimi_wire.record import (
    Entry,
    GuestRecord,
    Move,
    PhaseRecord,
    Sample,
    SwitchRow,
)


class Account(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of an operation.

    The fields are those of an `OperationRecord`; `result` and `mode` are None, and `command` empty,
    where only a journal is there and does not tell. `journal` is empty if there is a record;
    `process` is the one that still performs the operation, None if there is none.
    """

    operation: str
    command: str
    mode: Mode | None
    began: str
    duration_s: float
    result: Result | None
    guests: tuple[GuestRecord, ...]
    switches: tuple[SwitchRow, ...]
    error: dict[str, Any] | None
    journal: tuple[Entry, ...] = ()
    process: int | None = None

    @property
    def span_s(self) -> tuple[float, float]:
        """Return the begin and end of all that is told; preflight is before the start, at 0."""
        starts = (row.started_s for guest in self.guests for row in guest.phases)
        return min((0.0, *starts)), self.duration_s

    @property
    def moves(self) -> list[str]:
        """Return the ways that guests go, `hosta → hostb`, each once."""
        ways = (f"{one.move.source} → {one.move.destination}" for one in self.guests)
        return list(dict.fromkeys(way for way in ways if way != " → "))


class Opening(msgspec.Struct, frozen=True):
    """What the facts of a journal's first entry tell of the operation, as far as they do."""

    command: str = ""
    mode: Mode | None = None
    began: str = ""
    moves: tuple[Move, ...] = ()


def account(folder: OperationFolder) -> Account:
    """Gather what is known of an operation.

    :raise PreflightRefused: `operation-damaged`.
    """
    record = folder.record()
    if record is not None:
        return Account(**msgspec.structs.asdict(record))
    process = holder(folder.folder / LOCK)
    return _rebuilt(folder.operation, folder.entries(), folder.samples(), process)


def _rebuilt(
    operation: str, entries: list[Entry], samples: list[Sample], process: int | None
) -> Account:
    opening = _opening(entries)
    lines: list[Entry | Sample] = [*entries, *samples]
    ended_s = max((line.at_s for line in lines), default=0.0)
    moves = {move.guest: move for move in opening.moves}
    for line in lines:
        if line.guest:
            moves.setdefault(line.guest, Move(line.guest, "", "", "", ""))
    return Account(
        operation,
        opening.command,
        opening.mode,
        opening.began or _date_of(operation),
        ended_s,
        None,
        tuple(GuestRecord(moves[name], _phases(entries, name, ended_s)) for name in sorted(moves)),
        (),
        None,
        tuple(entries),
        process,
    )


def _opening(entries: list[Entry]) -> Opening:
    try:
        return msgspec.convert(entries[0].facts, Opening)
    except (IndexError, msgspec.ValidationError):
        return Opening()


def _date_of(operation: str) -> str:
    """Return the date that an operation's id begins with; empty if it does not."""
    try:
        began = time.strptime(operation[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return ""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", began)


def _phases(entries: list[Entry], guest: str, ended_s: float) -> tuple[PhaseRecord, ...]:
    """Return a guest's phases in the table's order, those that the journal knows of.

    One that had begun and not ended has lasted until the journal's end. A phase that was undone
    keeps the time that it took to be done.
    """
    found: dict[Phase, PhaseRecord] = {}
    for entry in entries:
        if entry.phase is None or entry.state is None or entry.guest not in ("", guest):
            continue
        before = found.get(entry.phase)
        started_s, duration_s = entry.at_s, 0.0
        if before is not None and entry.state is not PhaseState.RUNNING:
            started_s, duration_s = before.started_s, before.duration_s
            if before.state is PhaseState.RUNNING:
                duration_s = entry.at_s - started_s
        facts = {**(before.facts if before else {}), **entry.facts}
        found[entry.phase] = PhaseRecord(entry.phase, entry.state, started_s, duration_s, facts)
    for phase, row in found.items():
        if row.state is PhaseState.RUNNING:
            found[phase] = msgspec.structs.replace(row, duration_s=ended_s - row.started_s)
    return tuple(found[row.phase] for row in PHASES if row.phase in found)

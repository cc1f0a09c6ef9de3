"""Keeps an operation's account: every transition on the disk before the next thing is done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from kawarimi_agent.report import SwitchReport
from kawarimi_bridge.migration import MigrationResult
from kawarimi_bridge.operations import OperationFolder
from kawarimi_wire.phases import PHASES, Mode, Phase, PhaseState, Result
from kawarimi_wire.record import (
    Entry,
    GuestRecord,
    Move,
    OperationRecord,
    PhaseRecord,
    RankRow,
    Sample,
    StepRow,
    SwitchRow,
)


class Diary:
    """The journal while the operation runs; its record at the end.

    Begun when preflight has passed: an operation that was refused leaves nothing behind.

    :param on_entry: is given every entry too, for whoever watches.
    """

    def __init__(
        self,
        folder: OperationFolder,
        command: str,
        mode: Mode,
        moves: Sequence[Move],
        on_entry: Callable[[Entry], None],
    ) -> None:
        self._folder = folder
        self._command = command
        self._mode = mode
        self._moves = tuple(moves)
        self._on_entry = on_entry
        self._began = time.monotonic()
        self._date = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._phases: dict[tuple[str, Phase], PhaseRecord] = {}
        self._migrations: dict[str, MigrationResult] = {}
        self._switches: list[SwitchRow] = []

    @property
    def now(self) -> float:
        """Return the seconds since the operation began."""
        return time.monotonic() - self._began

    def note(
        self,
        what: str = "",
        *,
        phase: Phase | None = None,
        state: PhaseState | None = None,
        guest: str = "",
        **facts: Any,
    ) -> None:
        """Write one entry."""
        entry = Entry(round(self.now, 4), phase, state, guest, what, facts)
        self._folder.write_entry(entry)
        self._on_entry(entry)

    def preflight(self, duration_s: float, **facts: Any) -> None:
        """Take down the preflight, which had passed before there was anything to write.

        Its entry opens the journal, and tells what the operation is about.
        """
        phase, state = Phase.PREFLIGHT, PhaseState.DONE
        self._set("", PhaseRecord(phase, state, -duration_s, duration_s, facts))
        about = {"command": self._command, "mode": self._mode, "began": self._date}
        self.note(phase=phase, state=state, duration_s=round(duration_s, 4), **about, **facts)

    def sample(self, guest: str, ethernet: int, fabric: int) -> None:
        """Take down a guest's traffic so far."""
        self._folder.write_sample(Sample(round(self.now, 4), guest, ethernet, fabric))

    @contextlib.contextmanager
    def phase(self, phase: Phase, guest: str = "") -> Iterator[dict[str, Any]]:
        """Time a phase of one guest, or of all; it has failed if the context is left by an error.

        A phase that was done and is entered again goes on: it lasts from its first beginning.

        :return: the facts that its record will have; to be filled.
        """
        started = self.now
        facts: dict[str, Any] = {}
        self.note(phase=phase, state=PhaseState.RUNNING, guest=guest)
        state = PhaseState.FAILED
        try:
            yield facts
            state = PhaseState.DONE
        finally:
            for name in self._names(guest):
                before = self._phases.get((name, phase), PhaseRecord(phase, PhaseState.PENDING))
                goes_on = before.state is PhaseState.DONE
                first = before.started_s if goes_on else started
                known = before.facts if goes_on else {}
                record = PhaseRecord(phase, state, first, self.now - first, {**known, **facts})
                self._phases[name, phase] = record
            self.note(phase=phase, state=state, guest=guest, **facts)

    def skip(self, phase: Phase, guest: str, why: str) -> None:
        """Take down that a phase does not apply to a guest."""
        self._set(guest, PhaseRecord(phase, PhaseState.SKIPPED, self.now, 0.0, {"why": why}))
        self.note(why, phase=phase, state=PhaseState.SKIPPED, guest=guest)

    def skip_pending(self, phase: Phase, guest: str, why: str) -> None:
        """Take down that a phase, if nothing was said of it so far, does not apply to a guest."""
        if (guest, phase) not in self._phases:
            self.skip(phase, guest, why)

    def undone(self, phase: Phase, guest: str) -> None:
        """Take down that a phase was taken back."""
        for (name, known), record in list(self._phases.items()):
            if known is phase and guest in ("", name):
                fields = (record.started_s, record.duration_s, record.facts)
                self._phases[name, phase] = PhaseRecord(phase, PhaseState.UNDONE, *fields)
        self.note(phase=phase, state=PhaseState.UNDONE, guest=guest)

    def migrated(self, guest: str, result: MigrationResult) -> None:
        """Take down how QEMU moved a guest."""
        self._migrations[guest] = result

    def switched(self, report: SwitchReport) -> None:
        """Take down a switch that has just ended."""
        started = self.now - report.duration_s
        self._switches.append(
            SwitchRow(
                report.job,
                report.to,
                started,
                report.duration_s,
                tuple(
                    StepRow(step.name, started + step.started_s, step.duration_s, step.rank_s)
                    for step in report.steps
                ),
                tuple(
                    RankRow(rank.vpid, rank.stall_s, rank.longest_gap_s) for rank in report.ranks
                ),
            )
        )

    def record(self, result: Result, error: dict[str, Any] | None) -> OperationRecord:
        """Return the account of the whole, and write it."""
        record = OperationRecord(
            self._folder.operation,
            self._command,
            self._mode,
            self._date,
            self.now,
            result,
            tuple(self._guest(move) for move in self._moves),
            tuple(self._switches),
            error,
        )
        self._folder.write_record(record)
        return record

    def _names(self, guest: str) -> list[str]:
        return [guest] if guest else [move.guest for move in self._moves]

    def _set(self, guest: str, record: PhaseRecord) -> None:
        for name in self._names(guest):
            self._phases[name, record.phase] = record

    def _guest(self, move: Move) -> GuestRecord:
        pending = PhaseState.PENDING
        phases = tuple(
            self._phases.get((move.guest, row.phase), PhaseRecord(row.phase, pending))
            for row in PHASES
        )
        if move.guest not in self._migrations:
            return GuestRecord(move, phases)
        result = self._migrations[move.guest]
        paused = result.paused
        return GuestRecord(
            move,
            phases,
            downtime_s=result.downtime_s,
            migration_s=result.total_s,
            transferred=result.transferred,
            downtime_at_s=(paused[0] - self._began, paused[1] - self._began) if paused else None,
        )

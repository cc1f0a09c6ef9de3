"""What an operation leaves behind: its journal while it runs, its record when it has ended.

Both lie in one folder per operation, named by its id: `journal.jsonl` (one `Entry` a line, written
through to the disk before the next thing is done), `samples.jsonl` (one `Sample` a line) and, once
it has ended, `record.json` (an `OperationRecord`). Durations and times are seconds by the bridge's
monotonic clock, counted from the operation's start; only `began` is a date.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kawarimi_wire.phases import Mode, Phase, PhaseState, Result


class Move(msgspec.Struct, frozen=True):
    """One guest's way: the hosts, and the fabric on each (empty where there is Ethernet only)."""

    guest: str
    source: str
    destination: str
    source_fabric: str
    destination_fabric: str


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One transition, or one thing that is worth knowing of a transition under way.

    :ivar guest: empty where it concerns all guests.
    :ivar facts: what was found or measured, by name.
    """

    at_s: float
    phase: Phase | None = None
    state: PhaseState | None = None
    guest: str = ""
    what: str = ""
    facts: dict[str, Any] = msgspec.field(default_factory=dict)


class Sample(msgspec.Struct, frozen=True):
    """What a guest has sent and received so far, in bytes.

    :ivar ethernet: over its Ethernet; `fabric`: over its HCA, 0 while it has none.
    """

    at_s: float
    guest: str
    ethernet: int
    fabric: int


class PhaseRecord(msgspec.Struct, frozen=True):
    """One phase of one guest; what concerns all guests stands in each of them."""

    phase: Phase
    state: PhaseState
    started_s: float = 0.0
    duration_s: float = 0.0
    facts: dict[str, Any] = msgspec.field(default_factory=dict)


class GuestRecord(msgspec.Struct, frozen=True):
    """One guest's part.

    :ivar downtime_s: QEMU's own account of how long the guest stood still; None if it did not move.
    :ivar migration_s: QEMU's own total time; None likewise.
    :ivar transferred: bytes that QEMU moved.
    :ivar downtime_at_s: when the guest stood still, as the bridge saw it: begin and end.
    """

    move: Move
    phases: tuple[PhaseRecord, ...]
    downtime_s: float | None = None
    migration_s: float | None = None
    transferred: int | None = None
    downtime_at_s: tuple[float, float] | None = None


class StepRow(msgspec.Struct, frozen=True):
    """One step of a switch: a barrier over all ranks of a job.

    :ivar rank_s: the longest time that a rank's own thread spent in it.
    """

    name: str
    started_s: float
    duration_s: float
    rank_s: float


class RankRow(msgspec.Struct, frozen=True):
    """What one rank lost to one switch.

    :ivar stall_s: time in the shim; `longest_gap_s`: the longest time without a break in it.
    """

    vpid: int
    stall_s: float
    longest_gap_s: float


class SwitchRow(msgspec.Struct, frozen=True):
    """One switch of one job, within the operation."""

    job: str
    to: str
    started_s: float
    duration_s: float
    steps: tuple[StepRow, ...]
    ranks: tuple[RankRow, ...]


class OperationRecord(msgspec.Struct, frozen=True):
    """A whole operation, complete also when it failed.

    :ivar command: `migrate`, `recover` or `switch`.
    :ivar began: date and time of its start, ISO 8601, UTC.
    :ivar error: the error that ended it, as `--json` prints one; None if none did.
    """

    operation: str
    command: str
    mode: Mode
    began: str
    duration_s: float
    result: Result
    guests: tuple[GuestRecord, ...]
    switches: tuple[SwitchRow, ...]
    error: dict[str, Any] | None = None

    @property
    def longest_gap_s(self) -> float:
        """Return the longest time that any rank spent in the shim without a break."""
        gaps = (rank.longest_gap_s for switch in self.switches for rank in switch.ranks)
        return max(gaps, default=0.0)

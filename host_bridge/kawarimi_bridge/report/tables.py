"""An operation's account as tables and lines of words, for the terminal and for HTML alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from kawarimi_bridge.report.account import Account
from kawarimi_wire.phases import PHASES, Phase, PhaseState
from kawarimi_wire.record import Entry, GuestRecord, SwitchRow

NUMBERS = {row.phase: number for number, row in enumerate(PHASES, start=1)}
"""The phases' numbers, by which bars name them."""
JOURNAL_ROWS = 40
"""How many of a journal's entries are shown, the latest."""


@dataclass(frozen=True)
class Table:
    """A table; columns from `numbers_from` on hold numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers_from: int = 99


def seconds(value: float) -> str:
    """Return a duration with as many digits as one reads: `48.2 ms`, `8.31 s`."""
    return f"{value * 1000:.1f} ms" if abs(value) < 1 else f"{value:.2f} s"


def size(value: float, unit: str = "B") -> str:
    """Return a size in decimal units: `312.4 MB`."""
    prefix = ""
    for larger in ("k", "M", "G", "T"):
        if abs(value) < 1000:
            break
        value, prefix = value / 1000, larger
    return f"{value:.1f} {prefix}{unit}" if prefix else f"{value:.0f} {unit}"


def printable(text: str) -> str:
    """Return a text without the characters that would command a terminal or hide others."""
    return "".join(
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def overview(accounts: Iterable[Account | Damaged]) -> Table:
    """Return the list of all operations."""
    rows = []
    for one in accounts:
        if isinstance(one, Damaged):
            rows.append([one.operation, "", "", "", "damaged", ""])
            continue
        guests = ", ".join(guest.move.guest for guest in one.guests)
        moves = ", ".join(one.moves)
        result = str(one.result or "no record")
        rows.append([one.operation, one.command, guests, moves, result, seconds(one.duration_s)])
    return Table(
        "operations", ["operation", "command", "guests", "from → to", "result", "duration"], rows, 5
    )


@dataclass(frozen=True)
class Damaged:
    """An operation whose record or journal cannot be read."""

    operation: str


def headline(one: Account) -> str:
    """Return what an operation was and how it ended, in a line or two."""
    words = one.command or "operation"
    if one.mode is not None:
        words += f" ({one.mode})"
    if one.result is not None:
        return f"{words}: {one.result} in {seconds(one.duration_s)}, began {one.began}"
    return (
        f"{words}: no record. It "
        + (f"still runs, as process {one.process}" if one.process else "was killed")
        + f"; its journal, of {len(one.journal)} entries, ends {seconds(one.duration_s)} "
        + "after its start"
        + (f", which was {one.began}" if one.began else "")
    )


def way(guest: GuestRecord) -> str:
    """Return a guest's name and the way that it went."""
    move = guest.move
    if not move.source:
        return move.guest
    ends = (
        f"{host} ({fabric or 'Ethernet only'})"
        for host, fabric in (
            (move.source, move.source_fabric),
            (move.destination, move.destination_fabric),
        )
    )
    return f"{move.guest}  {' → '.join(ends)}"


def qemu_account(guest: GuestRecord) -> str:
    """Return what QEMU says of a guest's migration; empty if it did not move."""
    words = []
    if guest.downtime_s is not None:
        words.append(f"downtime {seconds(guest.downtime_s)}")
    if guest.migration_s is not None:
        words.append(f"total {seconds(guest.migration_s)}")
    if guest.transferred is not None:
        words.append(f"{size(guest.transferred)} moved")
    return "QEMU: " + ", ".join(words) if words else ""


def phase_table(guest: GuestRecord) -> Table:
    """Return a guest's phases."""
    rows = [
        [
            f"{NUMBERS[row.phase]} {row.phase}",
            str(row.state),
            *(
                ["", ""]
                if row.state in (PhaseState.PENDING, PhaseState.SKIPPED)
                else [f"{row.started_s:.3f} s", f"{row.duration_s:.3f} s"]
            ),
        ]
        for row in guest.phases
    ]
    return Table(way(guest), ["phase", "state", "start", "duration"], rows, 2)


def switch_table(switch: SwitchRow) -> Table:
    """Return the steps of a switch: what each barrier took, and the slowest rank in it."""
    rows = [
        [step.name, *(f"{value:.3f} s" for value in (step.started_s, step.duration_s, step.rank_s))]
        for step in switch.steps
    ]
    title = (
        f"job {switch.job} → {switch.to}, at {seconds(switch.started_s)}, "
        f"in {seconds(switch.duration_s)}"
    )
    return Table(title, ["step", "start", "barrier", "slowest rank"], rows, 1)


def rank_table(one: Account) -> Table | None:
    """Return what each rank lost to all switches; None without any."""
    lost: dict[tuple[str, int], tuple[float, float]] = {}
    for switch in one.switches:
        for rank in switch.ranks:
            stall_s, gap_s = lost.get((switch.job, rank.vpid), (0.0, 0.0))
            lost[switch.job, rank.vpid] = (
                stall_s + rank.stall_s,
                max(gap_s, rank.longest_gap_s),
            )
    if not lost:
        return None
    rows = [
        [job, str(vpid), seconds(stall_s), seconds(gap_s)]
        for (job, vpid), (stall_s, gap_s) in sorted(lost.items())
    ]
    return Table("what the ranks lost", ["job", "rank", "in the shim", "longest gap"], rows, 1)


def error_lines(one: Account) -> list[str]:
    """Return the error that ended an operation, a line for each part of it; empty if none did."""
    if one.error is None:
        return []
    lines = [f"[{one.error.get('slug', '')}] {one.error.get('what', '')}"]
    lines += [f"{name}: {one.error[name]}" for name in ("untouched", "hint") if one.error.get(name)]
    return lines + _facts(one.error.get("facts") or {})


def journal_table(one: Account) -> Table | None:
    """Return the latest entries of a journal that has no record yet; None if it has."""
    if not one.journal:
        return None
    shown = one.journal[-JOURNAL_ROWS:]
    title = "journal" + (
        f", the last {len(shown)} of {len(one.journal)} entries" if shown != one.journal else ""
    )
    return Table(title, ["at", "guest", "phase", "what"], [_journal_row(entry) for entry in shown])


def phase_legend(phases: Iterable[Phase]) -> str:
    """Return the numbers of these phases with their names."""
    return "  ".join(
        f"{NUMBERS[phase]} {phase}" for phase in sorted(phases, key=NUMBERS.__getitem__)
    )


def _journal_row(entry: Entry) -> list[str]:
    phase = " ".join(str(part) for part in (entry.phase, entry.state) if part is not None)
    what = "; ".join([*([entry.what] if entry.what else []), *_facts(entry.facts)])
    return [f"{entry.at_s:.3f} s", entry.guest or "all", phase, what]


def _facts(facts: dict[str, object]) -> list[str]:
    return [
        f"{name}: {value if isinstance(value, str) else msgspec.json.encode(value).decode()}"
        for name, value in facts.items()
    ]

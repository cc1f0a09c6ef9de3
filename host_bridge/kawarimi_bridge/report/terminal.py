"""An operation's account as text: bars, tables, and a timeline of its traffic."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from kawarimi_bridge.report import tables
from kawarimi_bridge.report.account import Account
from kawarimi_bridge.report.tables import Damaged, Table, printable, seconds
from kawarimi_bridge.report.traffic import Traffic
from kawarimi_wire.record import GuestRecord

_BLOCKS = " ▁▂▃▄▅▆▇█"
_LABEL = 12
_IDLE, _STOOD_STILL = "·", "▼"


def text(one: Account, traffics: Sequence[Traffic], width: int) -> str:
    """Return the account as text.

    :param width: columns of the terminal; tables may be wider.
    """
    return printable("\n".join(_account(one, traffics, max(width - _LABEL - 2, 20))))


def listing(accounts: Iterable[Account | Damaged]) -> str:
    """Return the list of all operations as text."""
    return printable("\n".join(_table(tables.overview(accounts))))


def _account(one: Account, traffics: Sequence[Traffic], columns: int) -> Iterator[str]:
    yield f"{one.operation}  {tables.headline(one)}"
    if error := tables.error_lines(one):
        yield ""
        yield f"error {error[0]}"
        yield from (f"  {line}" for line in error[1:])
    for guest in one.guests:
        yield ""
        yield from _guest(one, guest, columns)
    for switch in one.switches:
        yield ""
        yield from _table(tables.switch_table(switch))
    for more in (tables.rank_table(one), tables.journal_table(one)):
        if more is not None:
            yield ""
            yield from _table(more)
    yield ""
    yield from _timeline(one, traffics, columns)


def _table(content: Table) -> Iterator[str]:
    """Yield a table's title, header and rows, the columns as wide as they need be."""
    rows = [[cell.replace("\n", " ") for cell in row] for row in content.rows]
    widths = [max(map(len, column)) for column in zip(content.header, *rows, strict=True)]
    yield content.title
    for row in [list(content.header), *rows]:
        cells = (
            cell.rjust(width) if number >= content.numbers_from else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield f"  {'  '.join(cells)}".rstrip()


def _guest(one: Account, guest: GuestRecord, columns: int) -> Iterator[str]:
    yield from _table(tables.phase_table(guest))
    if guest.phases:
        yield _row("", _phase_bar(guest, _bins(one, columns)))
    if account := tables.qemu_account(guest):
        yield f"  {account}"


def _row(label: str, bar: str) -> str:
    return f"  {label.ljust(_LABEL)}{bar}".rstrip()


def _bins(one: Account, columns: int) -> list[tuple[float, float]]:
    """Return the columns' shares of an operation's time, each its begin and end."""
    begin_s, end_s = one.span_s
    ends = [begin_s + column * (end_s - begin_s) / columns for column in range(columns + 1)]
    return list(itertools.pairwise(ends))


def _phase_bar(guest: GuestRecord, bins: Sequence[tuple[float, float]]) -> str:
    """Return a bar whose columns hold the number of the phase that took most of their time."""
    bar = ""
    for begin_s, end_s in bins:
        shares = {
            str(tables.NUMBERS[row.phase]): _overlap(
                begin_s, end_s, row.started_s, row.started_s + row.duration_s
            )
            for row in guest.phases
        }
        number = max(shares, key=lambda one: shares[one], default="")
        bar += number if shares.get(number, 0) > 0 else _IDLE
    return bar


def _overlap(begin_s: float, end_s: float, other_begin_s: float, other_end_s: float) -> float:
    return max(0.0, min(end_s, other_end_s) - max(begin_s, other_begin_s))


def _timeline(one: Account, traffics: Sequence[Traffic], columns: int) -> Iterator[str]:
    """Yield each guest's rates over time, below them its phases and when it stood still."""
    if not traffics:
        yield "throughput: no samples"
        return
    bins = _bins(one, columns)
    yield f"throughput, a column is {seconds(bins[0][1] - bins[0][0])}"
    for guest in one.guests:
        mine = [traffic for traffic in traffics if traffic.guest == guest.move.guest]
        if not mine:
            continue
        yield f" {guest.move.guest}"
        for traffic in mine:
            yield from _rate_rows(traffic, bins)
        yield _row("phases", _phase_bar(guest, bins))
        if guest.downtime_at_s is not None:
            begin_s, end_s = guest.downtime_at_s
            bar = "".join(
                _STOOD_STILL if column_begin_s <= end_s and begin_s < column_end_s else " "
                for column_begin_s, column_end_s in bins
            )
            yield _row("downtime", bar)
    begin, end = (seconds(end_s) for end_s in one.span_s)
    yield _row("", begin + end.rjust(columns - len(begin)))
    phases = {row.phase for guest in one.guests for row in guest.phases}
    yield f"  {tables.phase_legend(phases)}"


def _rate_rows(traffic: Traffic, bins: Sequence[tuple[float, float]]) -> Iterator[str]:
    rates = [traffic.mean_rate(*bin_) for bin_ in bins]
    most = max((rate for rate in rates if rate is not None), default=0.0)
    top = len(_BLOCKS) - 1
    # What flows at all is seen: only nothing is a blank.
    bar = "".join(" " if not rate else _BLOCKS[max(1, round(rate / most * top))] for rate in rates)
    yield _row(traffic.network, bar)
    yield _row("", f"most {tables.size(most, 'B/s')}")

"""The images of a report: stacked phases, and throughput through them. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kawarimi_bridge.report.account import Account
from kawarimi_bridge.report.tables import NUMBERS, printable
from kawarimi_bridge.report.traffic import NETWORKS, Traffic
from kawarimi_wire.errors import PreflightRefused, Slug
from kawarimi_wire.phases import PHASES, Phase, PhaseState
from kawarimi_wire.record import GuestRecord

if TYPE_CHECKING:  # imported when something is drawn: it takes a second, and may be missing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH_INCHES = 10.0
_COLOURS = dict(
    zip(
        (row.phase for row in PHASES),
        (
            *("#9aa5b1", "#4e79a7", "#76b7b2", "#59a14f", "#edc948"),
            *("#f28e2b", "#b07aa1", "#ff9da7", "#9c755f"),
        ),
        strict=True,
    )
)
_LINES = dict(zip(NETWORKS, ("#c0392b", "#1f4e9c"), strict=True))
_DOWNTIME = "#000000"


def images(one: Account, traffics: Sequence[Traffic]) -> dict[str, bytes]:
    """Draw an operation: PNGs by their names; what there are no figures for is left out.

    :raise PreflightRefused: `library-missing`, without matplotlib.
    """
    drawn = {}
    if any(guest.phases for guest in one.guests):
        drawn["phases.png"] = _png(len(one.guests), lambda figure: _draw_phases(figure, one))
    guests = [
        guest
        for guest in one.guests
        if any(traffic.guest == guest.move.guest for traffic in traffics)
    ]
    if guests:
        drawn["throughput.png"] = _png(
            2.5 * len(guests), lambda figure: _draw_throughput(figure, one, guests, traffics)
        )
    return drawn


def _png(height: float, draw: Callable[[Figure], None]) -> bytes:
    """Return what `draw` puts on an empty figure; no display is needed.

    :param height: in inches, without that of the title and the legend.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PreflightRefused(
            Slug.LIBRARY_MISSING,
            f"The images of a report need matplotlib, which cannot be imported: {error}.",
            untouched="nothing was written",
            hint="install kawarimi[report], or ask for '--text' alone",
        ) from error
    # Names are names: a dollar sign in one begins no formula.
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9.0}):
        figure = Figure(figsize=(_WIDTH_INCHES, 1.6 + height), dpi=120, layout="constrained")
        draw(figure)
        content = io.BytesIO()
        figure.savefig(content, format="png")
    return content.getvalue()


def _draw_phases(figure: Figure, one: Account) -> None:
    """Draw a row of bars for each guest: when each of its phases was, and how long."""
    axes = figure.subplots()
    for row, guest in enumerate(one.guests):
        for phase in guest.phases:
            failed = phase.state in (PhaseState.FAILED, PhaseState.UNDONE)
            axes.barh(
                row,
                phase.duration_s,
                left=phase.started_s,
                height=0.6,
                color=_COLOURS[phase.phase],
                edgecolor="#c0392b" if failed else "none",
                hatch="//" if failed else None,
            )
        if guest.downtime_at_s is not None:
            begin_s, end_s = guest.downtime_at_s
            axes.barh(row, end_s - begin_s, left=begin_s, height=0.6, color=_DOWNTIME)
    axes.set_yticks(range(len(one.guests)), [printable(one.move.guest) for one in one.guests])
    axes.invert_yaxis()
    axes.set_title(f"{one.operation}: phases of each guest")
    _finish(figure, [axes], one)


def _draw_throughput(
    figure: Figure, one: Account, guests: Sequence[GuestRecord], traffics: Sequence[Traffic]
) -> None:
    """Draw each guest's rates over its shaded phases."""
    every = figure.subplots(len(guests), 1, sharex=True, squeeze=False)[:, 0]
    for axes, guest in zip(every, guests, strict=True):
        for phase in guest.phases:
            ends_s = phase.started_s + phase.duration_s
            axes.axvspan(phase.started_s, ends_s, color=_COLOURS[phase.phase], alpha=0.3, lw=0)
        for traffic in traffics:
            if traffic.guest == guest.move.guest:
                megabytes = [rate / 1e6 for rate in traffic.rates()]
                colour = _LINES[traffic.network]
                axes.stairs(
                    megabytes, traffic.at_s, baseline=None, color=colour, label=traffic.network
                )
        if guest.downtime_at_s is not None:
            axes.axvspan(*guest.downtime_at_s, color=_DOWNTIME, lw=1)
        axes.set_ylabel(f"{printable(guest.move.guest)}\nMB/s")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right")
    every[0].set_title(f"{one.operation}: throughput, sent and received")
    _finish(figure, list(every), one)


def _finish(figure: Figure, every: Sequence[Axes], one: Account) -> None:
    """Set the time axis, and name the phases' colours below."""
    from matplotlib.patches import Patch

    for axes in every:
        axes.set_xlim(one.span_s[0], one.span_s[1] or 1.0)
    every[-1].set_xlabel("seconds since the operation's start")
    shown: set[Phase] = {row.phase for guest in one.guests for row in guest.phases}
    handles = [
        Patch(color=colour, label=f"{NUMBERS[phase]} {phase}")
        for phase, colour in _COLOURS.items()
        if phase in shown
    ]
    if any(guest.downtime_at_s for guest in one.guests):
        handles.append(Patch(color=_DOWNTIME, label="QEMU's downtime"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5)

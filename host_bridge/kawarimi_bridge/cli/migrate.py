"""`kawarimi migrate`, `check` and `recover`: operations on guests."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import msgspec

from kawarimi_bridge.cli.output import Watch, json_option, print_error_dict, print_json
from kawarimi_bridge.config import Config, read_config
from kawarimi_bridge.locks import guests_held, held
from kawarimi_bridge.migration_parameters import MigrationParameters
from kawarimi_bridge.operation.diary import Diary
from kawarimi_bridge.operation.operation import Operation, Options
from kawarimi_bridge.operation.plan import Plan, check_names, find_moves, make_plan
from kawarimi_bridge.operations import LOCK, OperationFolder, new_operation, operations_dir
from kawarimi_bridge.session import Session, open_session
from kawarimi_wire.errors import ExitCode, Interrupted, Slug, UsageError
from kawarimi_wire.phases import PHASES, Mode, Phase, Result
from kawarimi_wire.record import Entry, Move, OperationRecord

_EXIT = {
    Result.COMPLETED: ExitCode.COMPLETED,
    Result.DEGRADED: ExitCode.DEGRADED,
    Result.ROLLED_BACK: ExitCode.FAILED,
    Result.NEEDS_CLEANUP: ExitCode.NEEDS_CLEANUP,
}

mode_option = click.option(
    "--mode",
    type=click.Choice([str(mode) for mode in Mode]),
    default=str(Mode.LIVE),
    show_default=True,
    help="live: the jobs compute on the fallback meanwhile; frozen: they are held.",
)

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The configuration of hosts and guests (default: KAWARIMI_CONFIG, then "
    "~/.config/kawarimi/config.toml, then /etc/kawarimi/config.toml).",
)
_lines_option = click.option(
    "--json-lines", is_flag=True, help="Print every transition as a JSON object on a line."
)
_deadline_option = click.option(
    "--deadline",
    "deadlines",
    multiple=True,
    metavar="PHASE=SECONDS",
    help="How long a phase may take; may be given several times.",
)
_poke_option = click.option(
    "--poke", is_flag=True, help="Wake ranks that compute outside MPI, by a signal."
)


def _deadlines(words: Sequence[str]) -> dict[Phase, float]:
    found = {}
    for word in words:
        name, _, seconds = word.partition("=")
        try:
            found[Phase(name)] = float(seconds)
        except ValueError as error:
            raise UsageError(
                Slug.BAD_USAGE,
                f"{word!r} is not PHASE=SECONDS.",
                untouched="nothing was begun",
                hint="the phases are " + ", ".join(Phase),
            ) from error
    return found


def _destinations(words: Sequence[str], to: str | None) -> tuple[list[str], dict[str, str]]:
    """Return the guests, and the destination of each that has one."""
    pairs = [word.partition("=") for word in words]
    places = {guest: host or to for guest, _, host in pairs}
    return [guest for guest, _, _ in pairs], {g: host for g, host in places.items() if host}


def _row(move: Move) -> str:
    source = f"{move.source} ({move.source_fabric or 'Ethernet'})"
    destination = f"{move.destination} ({move.destination_fabric or 'Ethernet'})"
    return f"{move.guest}: {source} → {destination}"


def _show_plan(plan: Plan, mode: Mode) -> None:
    for move in plan.moves:
        device = plan.devices.get(move.guest)
        holds = f"holds {device.name} ({device.mac})" if device else "holds no HCA"
        click.echo(f"{_row(move)}; {holds}")
    for job in plan.jobs:
        now = job.fabric if job.on_fabric else job.fallback
        click.echo(f"job {job.name} on {', '.join(job.guests)}: on {now} now, mode {mode}")
    width = max(len(row.phase) for row in PHASES)
    for row in PHASES:
        click.echo(f"  {row.phase:<{width}}  {row.actors:<14}  {row.proof}")
        if row.undo:
            click.echo(f"  {'':<{width}}  {'':<14}  undo: {row.undo}")


def _plan_as_dict(plan: Plan) -> dict[str, object]:
    return {
        "moves": plan.moves,
        "devices": dict(plan.devices),
        "jobs": [
            {
                "job": job.name,
                "guests": job.guests,
                "fabric": job.fabric,
                "fallback": job.fallback,
                "on_fabric": job.on_fabric,
            }
            for job in plan.jobs
        ],
    }


class _Signals:
    """Ctrl-C during an operation: the way back where there is one, else a word that there is none.

    Before there is an operation to go back from, the task itself is cancelled.
    """

    def __init__(self) -> None:
        self.operation: Operation | None = None
        self._task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._interrupt)

    def _interrupt(self) -> None:
        if self.operation is None:
            assert self._task is not None
            self._task.cancel()
        elif self.operation.interrupt():
            click.echo("Interrupted: rolling back.", err=True)
        else:
            click.echo("This cannot be undone any more; it is seen through.", err=True)


async def operate(
    config: Config,
    command: str,
    guests: Sequence[str],
    to: Mapping[str, str],
    options: Options,
    on_entry: Callable[[Entry], None],
) -> OperationRecord:
    """Plan an operation and carry it out.

    :raise KawarimiError: it was refused, or interrupted before it began: nothing was touched.
    """
    folder = OperationFolder(operations_dir() / new_operation())
    signals = _Signals()
    began = time.monotonic()
    check_names(config, guests, to.values())
    try:
        with guests_held(guests), contextlib.ExitStack() as stack:
            async with open_session(config) as session:
                plan = await _plan(session, guests, to)
                stack.enter_context(held(folder.folder / LOCK))
                diary = Diary(folder, command, options.mode, plan.moves, on_entry)
                diary.preflight(time.monotonic() - began, **_plan_as_dict(plan))
                operation = Operation(config, session.hypervisor, plan, diary, options)
                signals.operation = operation
                return await operation.run()
    except asyncio.CancelledError:
        raise Interrupted(
            Slug.INTERRUPTED, "Interrupted before anything was begun.", untouched="everything"
        ) from None


async def look(config: Config, guests: Sequence[str], to: Mapping[str, str]) -> Plan:
    """Plan an operation, and leave it at that.

    :raise KawarimiError: it would be refused.
    """
    check_names(config, guests, to.values())
    with guests_held(guests):
        async with open_session(config) as session:
            return await _plan(session, guests, to)


async def _plan(session: Session, guests: Sequence[str], to: Mapping[str, str]) -> Plan:
    moves = await find_moves(session.config, session.hypervisor, guests, to)
    return await make_plan(
        session.config, session.hypervisor, session.agents, moves, session.unreachable
    )


def _finish(record: OperationRecord, as_json: bool, as_lines: bool) -> int:
    if as_lines:
        click.echo(msgspec.json.encode(record).decode())
    elif as_json:
        print_json(record)
    else:
        for guest in record.guests:
            click.echo(_row(guest.move))
            if guest.downtime_s is not None:
                click.echo(f"  QEMU's downtime {guest.downtime_s * 1e3:.0f} ms")
        gap = record.longest_gap_s * 1e3
        click.echo(
            f"{record.result} in {record.duration_s:.1f} s; longest gap of a rank in a switch "
            f"{gap:.0f} ms; 'kawarimi report {record.operation}' shows it"
        )
    if record.error is not None:
        print_error_dict(record.error)
        if record.result is Result.ROLLED_BACK:
            return int(record.error["exit_code"])
    return int(_EXIT[record.result])


@click.command()
@click.argument("guests", nargs=-1, required=True, metavar="GUEST[=HOST]...")
@click.option("--to", metavar="HOST", help="The destination of the guests that name none.")
@mode_option
@click.option(
    "--bandwidth", default=0, metavar="MIB/S", help="Of all guests together; 0: no limit."
)
@click.option("--downtime-limit", default=300, show_default=True, metavar="MS")
@click.option("--multifd", type=click.IntRange(1, 255), metavar="STREAMS", help="Parallel streams.")
@click.option(
    "--postcopy", is_flag=True, help="Let the guest go over when its memory was sent once."
)
@click.option("--tls", default="", metavar="FOLDER", help="Of the certificates, on both hosts.")
@click.option("--tls-hostname", default="", help="Whom the destination's certificate names.")
@_deadline_option
@_poke_option
@click.option("--dry-run", is_flag=True, help="Check everything, show what would be done, stop.")
@config_option
@_lines_option
@json_option
def migrate(
    guests: tuple[str, ...],
    to: str | None,
    mode: str,
    bandwidth: int,
    downtime_limit: int,
    multifd: int | None,
    postcopy: bool,
    tls: str,
    tls_hostname: str,
    deadlines: tuple[str, ...],
    poke: bool,
    dry_run: bool,
    config_path: Path | None,
    json_lines: bool,
    as_json: bool,
) -> int:
    """Move running guests, and the MPI jobs in them, to other hosts.

    The jobs leave their fabric, the HCAs are unplugged, the guests are live-migrated side by side,
    each is given the HCA that its new host has for it, and the jobs take the fabric again. Until
    the first guest has moved, any failure, or Ctrl-C, undoes everything.
    """
    names, places = _destinations(guests, to)
    homeless = [name for name in names if name not in places]
    if homeless:
        raise UsageError(
            Slug.BAD_USAGE,
            f"There is no destination for {', '.join(homeless)}.",
            untouched="nothing was begun",
            hint="say --to HOST, or GUEST=HOST",
        )
    config = read_config(config_path)
    if dry_run:
        plan = asyncio.run(look(config, names, places))
        if as_json:
            print_json({**_plan_as_dict(plan), "phases": PHASES})
        else:
            _show_plan(plan, Mode(mode))
        return ExitCode.COMPLETED
    options = Options(
        Mode(mode),
        MigrationParameters(
            bandwidth * 2**20, downtime_limit / 1000, multifd, postcopy, tls, tls_hostname
        ),
        _deadlines(deadlines),
        poke,
    )
    watch = Watch(lines=json_lines)
    record = asyncio.run(operate(config, "migrate", names, places, options, watch.entry))
    return _finish(record, as_json, json_lines)


@click.command()
@click.argument("guests", nargs=-1, required=True, metavar="GUEST[=HOST]...")
@click.option("--to", metavar="HOST", help="The destination of the guests that name none.")
@config_option
@json_option
def check(guests: tuple[str, ...], to: str | None, config_path: Path | None, as_json: bool) -> None:
    """Say whether guests could be moved now; touches nothing."""
    names, places = _destinations(guests, to)
    plan = asyncio.run(look(read_config(config_path), names, places))
    if as_json:
        print_json({**_plan_as_dict(plan), "phases": PHASES})
    else:
        _show_plan(plan, Mode.LIVE)


@click.command()
@click.argument("guests", nargs=-1, required=True, metavar="GUEST...")
@_deadline_option
@_poke_option
@config_option
@_lines_option
@json_option
def recover(
    guests: tuple[str, ...],
    deadlines: tuple[str, ...],
    poke: bool,
    config_path: Path | None,
    json_lines: bool,
    as_json: bool,
) -> int:
    """Bring jobs back to the fabric that their guests' hosts have, after a degraded operation.

    Plugs what is not plugged, proves the fabric, and lets the jobs take it. Moves nothing.
    """
    options = Options(deadlines=_deadlines(deadlines), poke=poke)
    watch = Watch(lines=json_lines)
    config = read_config(config_path)
    record = asyncio.run(operate(config, "recover", list(guests), {}, options, watch.entry))
    return _finish(record, as_json, json_lines)

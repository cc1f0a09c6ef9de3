"""`kawarimi demo`, as a command."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from kawarimi_bridge.cli.migrate import mode_option
from kawarimi_bridge.cli.output import Progress, json_option, print_json
from kawarimi_testbed.cli import hca_option
from kawarimi_testbed.commands import require_root
from kawarimi_testbed.demo import Demo, DemoOperation, run_demo
from kawarimi_testbed.topology import HcaVariant
from kawarimi_wire.errors import ExitCode
from kawarimi_wire.phases import Mode, PhaseState, Result


@click.command()
@click.option("--ranks-per-guest", default=1, show_default=True, help="MPI ranks in each guest.")
@mode_option
@click.option(
    "--kind",
    type=click.Choice(["btl", "ucp"]),
    default="ucp",
    show_default=True,
    help="Kind of shim: below PML ucx, or for the BTL openib.",
)
@hca_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("kawarimi-demo"),
    show_default=True,
    help="Where the operations' journals and reports go.",
)
@json_option
def demo(ranks_per_guest: int, mode: str, kind: str, hca: str, out: Path, as_json: bool) -> int:
    """Watch an MPI program compute on while both of its guests move, twice.

    Builds a testbed, starts a verified program on two guests over InfiniBand, migrates both from
    hosta to hostb, which has Ethernet only (fallback), and on to hostc, which has another fabric
    (recovery). Needs root; needs neither RDMA hardware nor KVM.
    """
    require_root("The demonstration")
    shown = run_demo(
        Progress(),
        out.resolve(),
        ranks_per_guest=ranks_per_guest,
        mode=Mode(mode),
        kind=kind,
        hca=HcaVariant(hca),
    )
    result = asyncio.run(shown)
    if as_json:
        print_json(result)
    else:
        _show(result)
    well = all(done.result is Result.COMPLETED for done in result.operations)
    return ExitCode.COMPLETED if well and not result.program.data_errors else ExitCode.FAILED


def _show(result: Demo) -> None:
    for done in result.operations:
        click.echo(f"{done.from_} → {done.to}: {done.result} in {done.duration_s:.1f} s")
        for row in done.phases:
            took = (
                f"{row.duration_s:8.2f} s" if row.state is PhaseState.DONE else f"{row.state:>10}"
            )
            stall = f"   stall {_ms(row.stall_s):>8}" if row.stall_s else ""
            click.echo(f"  {row.phase:<10}{took}{stall}")
        click.echo(f"  the program's longest stall {_ms(done.stall_s)}; {_why(done)}")
    program = result.program
    click.echo(
        f"the program: {program.iterations} exchanges, {program.data_errors} wrong bytes; its "
        f"longest stall while nothing moved {_ms(program.undisturbed_stall_s)}"
    )
    for folder in result.reports:
        click.echo(f"report: {folder}/report.html")


def _why(done: DemoOperation) -> str:
    return f"QEMU's downtime {_ms(done.downtime_s)}, a switch at most {_ms(done.gap_s)}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"

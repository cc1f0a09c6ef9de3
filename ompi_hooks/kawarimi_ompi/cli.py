"""`kawarimi hooks` and `kawarimi run`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from kawarimi_bridge.cli.output import json_option, print_json
from kawarimi_ompi import build as building
from kawarimi_ompi.launcher import Choice, Kind, choose_kind, environment, parameters
from kawarimi_ompi.ucp import LAUNCHERS, UcpChoice, launch
from kawarimi_wire.errors import PreflightRefused, Slug, UsageError

_component_option = click.option(
    "--component",
    envvar="KAWARIMI_COMPONENT",
    metavar="DIRECTORY",
    type=click.Path(path_type=Path),
    help="Where the component is, if not where 'hooks build' puts it.",
)
_mpirun_option = click.option(
    "--mpirun", default="mpirun", metavar="PATH", help="Launcher of the Open MPI to use."
)


@click.group()
def hooks() -> None:
    """Build or inspect the native component that ranks load."""


@hooks.command()
@click.option(
    "--mpicc", default="mpicc", metavar="PATH", help="Compiler wrapper of the Open MPI to use."
)
@json_option
def build(mpicc: str, as_json: bool) -> None:
    """Build the component for an Open MPI, and the library for UCX, unless they are there."""
    open_mpi = building.find_open_mpi(mpicc)
    built = {"component": building.build(open_mpi) / building.COMPONENT}
    if open_mpi.ucx:
        built["library"] = building.build_ucp()
    if as_json:
        print_json({"open_mpi": open_mpi, **built})
    else:
        for path in built.values():
            click.echo(path)


@hooks.command()
@_mpirun_option
@_component_option
@json_option
def info(mpirun: str, component: Path | None, as_json: bool) -> None:
    """Say which Open MPI and which component there are, and whether they fit."""
    found = building.info(building.find_runtime(mpirun), component)
    if as_json:
        print_json(found)
        return
    click.echo(f"Open MPI   {found.open_mpi.version} ({found.open_mpi.component_path})")
    click.echo(f"component  {found.component or '—'}")
    click.echo("usable" if found.usable else f"not usable: {found.reason}")


def _launcher(program: str, mpirun: str) -> str:
    """Name the launcher of the Open MPI that runs the job: the program itself, if it is one."""
    return program if Path(program).name in LAUNCHERS else mpirun


class _Wish(msgspec.Struct, frozen=True):
    """What was asked for on the command line; None: the kind's own choice."""

    kind: str | None
    fabric: str | None
    fallback: str | None
    agent: Path
    include: str
    mpirun: str
    component: Path | None


def _execute(command: tuple[str, ...], wish: _Wish) -> NoReturn:
    """Become `command`, in an environment that makes it switchable.

    :raise UsageError: there is no such program.
    :raise PreflightRefused: the shim is not built, or the line cannot be switched.
    """
    program = shutil.which(command[0])
    if program is None:
        raise UsageError(
            Slug.PROGRAM_MISSING, f"no program {command[0]!r} is on PATH", untouched="everything"
        )
    open_mpi = building.find_runtime(_launcher(command[0], wish.mpirun))
    given = parameters(command, os.environ)
    built = building.ucp_library(wish.component) is not None
    kind, why = choose_kind(given, (wish.fabric, wish.fallback), open_mpi, built=built)
    if wish.kind:
        kind, why = Kind(wish.kind), "it was asked for"
    start = {Kind.BTL: _start_btl, Kind.UCP: _start_ucp}[kind]
    words, variables = start(command, given, open_mpi, wish)
    click.echo(f"kawarimi: kind {kind} ({why})", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, words, variables)  # noqa: S606 (becoming it is the point)


def _missing(reason: str) -> PreflightRefused:
    return PreflightRefused(
        Slug.COMPONENT_MISSING,
        reason,
        untouched="nothing was started",
        hint="run 'kawarimi hooks build', on every machine at the same path",
    )


def _start_btl(
    command: tuple[str, ...], given: dict[str, str], open_mpi: building.OpenMpi, wish: _Wish
) -> tuple[list[str], dict[str, str]]:
    found = building.info(open_mpi, wish.component)
    if found.component is None:
        raise _missing(found.reason)
    default = Choice()
    choice = Choice(
        wish.fabric or default.fabric, wish.fallback or default.fallback, wish.agent, wish.include
    )
    directory = found.component.parent
    return list(command), environment(command, os.environ, open_mpi, directory, choice)


def _start_ucp(
    command: tuple[str, ...], given: dict[str, str], open_mpi: building.OpenMpi, wish: _Wish
) -> tuple[list[str], dict[str, str]]:
    library = building.ucp_library(wish.component)
    if library is None:
        where = wish.component or building.ucp_directory()
        raise _missing(f"the library of the kind ucp is not in {where}")
    default = UcpChoice()
    choice = UcpChoice(
        wish.fabric or default.fabric,
        wish.fallback or default.fallback,
        agent=wish.agent,
        devices=wish.include,
    )
    return launch(command, os.environ, given, library, choice)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--kind",
    type=click.Choice([str(kind) for kind in Kind]),
    help="Kind of shim: btl for PML ob1, ucp for PML ucx. Default: by what the job would use.",
)
@click.option("--fabric", metavar="NAME", help="BTL, or transport of UCX. Default: openib, or rc.")
@click.option("--fallback", metavar="NAME", help="Likewise. Default: tcp.")
@click.option(
    "--agent",
    default=Choice().agent,
    show_default=True,
    type=click.Path(path_type=Path),
    help="Socket of the guest agent.",
)
@click.option("--include", default="", metavar="LIST", help="Interfaces or networks for TCP.")
@_mpirun_option
@_component_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    kind: str | None,
    fabric: str | None,
    fallback: str | None,
    agent: Path,
    include: str,
    mpirun: str,
    component: Path | None,
    command: tuple[str, ...],
) -> None:
    """Start an MPI job whose interconnect can be exchanged: kawarimi run -- mpirun ..."""
    _execute(command, _Wish(kind, fabric, fallback, agent, include, mpirun, component))


def mpirun() -> NoReturn:
    """Stand in for mpirun: `kawarimi-mpirun ARGS` is `kawarimi run -- mpirun ARGS`."""
    from kawarimi_bridge.cli.main import main

    sys.exit(main(["run", "--", "mpirun", *sys.argv[1:]]))

"""`kawarimi hooks` and `kawarimi run`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import click

from kawarimi_bridge.cli.output import json_option, print_json
from kawarimi_ompi import build as building
from kawarimi_ompi.launcher import Choice, environment
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
    """Build the component for an Open MPI, unless it is there already."""
    open_mpi = building.find_open_mpi(mpicc)
    directory = building.build(open_mpi)
    if as_json:
        print_json({"open_mpi": open_mpi, "component": directory / building.COMPONENT})
    else:
        click.echo(directory / building.COMPONENT)


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
    return program if Path(program).name in ("mpirun", "mpiexec", "orterun") else mpirun


def _execute(
    command: tuple[str, ...], choice: Choice, mpirun: str, component: Path | None
) -> NoReturn:
    """Become `command`, in an environment that makes it switchable.

    :raise UsageError: there is no such program.
    :raise PreflightRefused: the component is not built, or the line cannot be switched.
    """
    program = shutil.which(command[0])
    if program is None:
        raise UsageError(
            Slug.PROGRAM_MISSING, f"no program {command[0]!r} is on PATH", untouched="everything"
        )
    open_mpi = building.find_runtime(_launcher(command[0], mpirun))
    found = building.info(open_mpi, component)
    if found.component is None:
        raise PreflightRefused(
            Slug.COMPONENT_MISSING,
            found.reason,
            untouched="nothing was started",
            hint="run 'kawarimi hooks build', on every machine at the same path",
        )
    variables = environment(command, os.environ, open_mpi, found.component.parent, choice)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, list(command), variables)  # noqa: S606 (becoming it is the point)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--fabric", default=Choice().fabric, show_default=True, metavar="BTL")
@click.option("--fallback", default=Choice().fallback, show_default=True, metavar="BTL")
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
    fabric: str,
    fallback: str,
    agent: Path,
    include: str,
    mpirun: str,
    component: Path | None,
    command: tuple[str, ...],
) -> None:
    """Start an MPI job whose interconnect can be exchanged: kawarimi run -- mpirun ..."""
    _execute(command, Choice(fabric, fallback, agent, include), mpirun, component)


def mpirun() -> NoReturn:
    """Stand in for mpirun: `kawarimi-mpirun ARGS` is `kawarimi run -- mpirun ARGS`."""
    from kawarimi_bridge.cli.main import main

    sys.exit(main(["run", "--", "mpirun", *sys.argv[1:]]))

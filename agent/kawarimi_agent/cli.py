"""`kawarimi agent`, and the commands that speak to one: `jobs`, `status`, `switch`."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path

import click

from kawarimi_agent.control import (
    CONTROL_SOCKET,
    RANKS_SOCKET,
    RUN_DIRECTORY,
    AskStatus,
    AskSwitch,
    ControlServer,
    ListJobs,
    ask,
)
from kawarimi_agent.coordinator import Switch
from kawarimi_agent.jobs import Jobs, JobStatus, JobSummary
from kawarimi_agent.ranks import RankServer
from kawarimi_agent.remote import find_ranks
from kawarimi_agent.report import SwitchReport
from kawarimi_bridge.cli.output import json_option, print_json
from kawarimi_wire.errors import ExecutionFailed, Slug

STATUS_DEADLINE_S = 2.0

_directory_option = click.option(
    "--run-directory",
    default=RUN_DIRECTORY,
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the agent's sockets are.",
)


def _cannot_listen(directory: Path, error: OSError) -> ExecutionFailed:
    return ExecutionFailed(
        Slug.AGENT_CANNOT_LISTEN,
        f"the agent cannot listen in {directory}: {error.strerror}",
        untouched="every job",
        hint="name a directory of your own with --run-directory",
    )


async def _serve(directory: Path) -> None:
    server = RankServer(directory / RANKS_SOCKET)
    control = ControlServer(directory / CONTROL_SOCKET, Jobs(server))
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        await server.start()
        await control.start()
    except OSError as error:
        await server.stop()
        raise _cannot_listen(directory, error) from error
    await ended.wait()
    await control.stop()
    await server.stop()


@click.command()
@_directory_option
def agent(run_directory: Path) -> None:
    """Run the guest agent in the foreground, until SIGTERM or SIGINT.

    Ranks dial it and dial again; it may start late, end, and start again under running jobs.
    """
    try:
        run_directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_listen(run_directory, error) from error
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    asyncio.run(_serve(run_directory))


def _line(summary: JobSummary) -> str:
    states = ", ".join(f"{count} {state}" for state, count in sorted(summary.states.items()))
    ranks = f"{summary.connected}/{summary.ranks} ranks"
    line = f"{summary.job:<12} {ranks:<14} {summary.fabric} ⇄ {summary.fallback:<8} {states}"
    return f"{line}  (cannot be switched: {summary.refusal})" if summary.refusal else line


@click.command()
@_directory_option
@json_option
def jobs(run_directory: Path, as_json: bool) -> None:
    """List the jobs whose ranks are connected to this machine's agent."""
    found = ask(run_directory / CONTROL_SOCKET, ListJobs(), list[JobSummary])
    if as_json:
        print_json(found)
        return
    for summary in found:
        click.echo(_line(summary))


@click.command()
@click.argument("job")
@_directory_option
@json_option
def status(job: str, run_directory: Path, as_json: bool) -> None:
    """Say what a job's messages go over, rank by rank."""
    request = AskStatus(job, STATUS_DEADLINE_S)
    found = ask(run_directory / CONTROL_SOCKET, request, JobStatus, STATUS_DEADLINE_S)
    if as_json:
        print_json(found)
        return
    click.echo(_line(found.summary))
    for rank in found.ranks:
        routes = sorted({"+".join(peer.send) for peer in rank.peers})
        heard = (
            f"{', '.join(routes) or '—':<16} stall {rank.stall_s * 1e3:.1f} ms, longest "
            f"{rank.longest_gap_s * 1e3:.1f} ms"
            if rank.answered
            else "no answer: not at a safe point"
        )
        click.echo(f"  rank {rank.vpid:<5} {rank.state:<10} {heard}")


async def _switch_everywhere(
    controls: tuple[Path, ...], job: str, to: str, deadline_s: float, poke: bool
) -> SwitchReport:
    ranks = await find_ranks(controls, job)
    return await Switch(job, ranks, to, deadline_s=deadline_s, poke=poke).run()


@click.command()
@click.argument("job")
@click.option("--to", required=True, metavar="BTL", help="The job's fabric or its fallback.")
@click.option("--deadline", default=30.0, show_default=True, metavar="SECONDS")
@click.option("--poke", is_flag=True, help="Wake ranks that compute outside MPI, by a signal.")
@click.option(
    "--control",
    "controls",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Control socket of an agent, one for each machine of the job; by default the local one.",
)
@_directory_option
@json_option
def switch(
    job: str,
    to: str,
    deadline: float,
    poke: bool,
    controls: tuple[Path, ...],
    run_directory: Path,
    as_json: bool,
) -> None:
    """Move a running job to another BTL, and wait until every rank has done it."""
    if controls:
        report = asyncio.run(_switch_everywhere(controls, job, to, deadline, poke))
    else:
        request = AskSwitch(job, to, deadline, poke)
        report = ask(run_directory / CONTROL_SOCKET, request, SwitchReport, deadline)
    if as_json:
        print_json(report)
        return
    if not report.changed:
        click.echo(f"job {job} is on {to} already")
        return
    for step in report.steps:
        waves = f", {step.waves} waves" if step.waves > 1 else ""
        click.echo(f"  {step.name:<12} {step.duration_s * 1e3:8.1f} ms{waves}")
    gap = max((rank.longest_gap_s for rank in report.ranks), default=0.0)
    click.echo(
        f"job {job} is on {to}: {report.duration_s * 1e3:.1f} ms, longest gap of a rank "
        f"{gap * 1e3:.1f} ms"
    )

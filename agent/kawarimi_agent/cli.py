"""`kawarimi agent`, and the commands that speak to one: `jobs`, `status`, `switch`."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TypeVar

import click

from kawarimi_agent.control import CONTROL_SOCKET, RUN_DIRECTORY, ControlChannel
from kawarimi_agent.coordinator import Switch
from kawarimi_agent.jobs import JobStatus, JobSummary
from kawarimi_agent.remote import find_ranks
from kawarimi_agent.report import SwitchReport
from kawarimi_agent.settings import FILE, load
from kawarimi_bridge.cli.output import json_option, print_json
from kawarimi_wire.messages import ANSWER_MARGIN_S, Ask, AskJobs, AskStatus, AskSwitch

STATUS_DEADLINE_S = 2.0
_WAY_BACK_S = 15.0
"""How much longer than its deadline a switch may take: the way back is in it."""

_T = TypeVar("_T")

_directory_option = click.option(
    "--run-directory",
    default=RUN_DIRECTORY,
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the agent's sockets are.",
)


def _ask(directory: Path, request: Ask, answer_type: type[_T], deadline_s: float) -> _T:
    """Ask this machine's agent; see `kawarimi_wire.messages.Channel`."""
    channel = ControlChannel(directory / CONTROL_SOCKET)
    return asyncio.run(channel.ask(request, answer_type, deadline_s + ANSWER_MARGIN_S))


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help=f"Instead of {FILE}.")
@click.option("--listen", metavar="ENDPOINT", help="For bridges, such as tcp://192.0.2.11:7117.")
@click.option("--secret-key", metavar="FILE", help="The agent's own secret key.")
@click.option("--bridges", metavar="FOLDER", help="The public keys of the bridges to admit.")
@click.option("--guest", metavar="NAME", help="The guest's name; by default the host name.")
@click.option("--run-directory", metavar="FOLDER", help=f"Its sockets' place: {RUN_DIRECTORY}.")
@click.option("--insecure", is_flag=True, help="Admit everybody; only on the loopback.")
def agent(config: Path | None, insecure: bool, **flags: str | None) -> None:
    """Run the guest agent in the foreground, until SIGTERM or SIGINT.

    Ranks dial it and dial again; it may start late, end, and start again under running jobs.

    Every option but --insecure may also stand in the environment (KAWARIMI_AGENT_LISTEN and so on)
    or in agent.toml; the command line goes first, then the environment. Without --listen no bridge
    can reach it.
    """
    # Imported here: the other commands need nothing of it.
    from kawarimi_agent.daemon import serve

    settings = load(flags, insecure=insecure, file=config)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(settings))


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
    found = _ask(run_directory, AskJobs(), list[JobSummary], 0.0)
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
    found = _ask(run_directory, request, JobStatus, STATUS_DEADLINE_S)
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
    ranks = await find_ranks([ControlChannel(path) for path in controls], job)
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
        report = _ask(run_directory, request, SwitchReport, deadline + _WAY_BACK_S)
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

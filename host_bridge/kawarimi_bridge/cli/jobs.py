"""`kawarimi jobs`, `status` and `switch`: the MPI jobs of this machine, or of all guests."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import click

from kawarimi_agent.control import CONTROL_SOCKET, RUN_DIRECTORY, ControlChannel
from kawarimi_agent.coordinator import Switch
from kawarimi_agent.jobs import JobStatus, JobSummary
from kawarimi_agent.remote import find_ranks
from kawarimi_agent.report import SwitchReport
from kawarimi_bridge.cli.migrate import config_option
from kawarimi_bridge.cli.operations import show_operation, show_running
from kawarimi_bridge.cli.output import json_option, print_json
from kawarimi_bridge.config import config_file, read_config
from kawarimi_bridge.locks import guests_held
from kawarimi_bridge.session import open_session
from kawarimi_wire.errors import Scope, Slug, UsageError
from kawarimi_wire.messages import ANSWER_MARGIN_S, AskJobs, AskStatus, AskSwitch, Channel

STATUS_DEADLINE_S = 2.0
_WAY_BACK_S = 15.0
"""How much longer than its deadline a switch may take: the way back is in it."""
_JOB = re.compile(r"\d+\.\d+")

_directory_option = click.option(
    "--run-directory",
    "directories",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Ask the agents whose sockets are there, instead of those of the configured guests; "
    f"{RUN_DIRECTORY} where no guests are configured.",
)

Found = Mapping[str, tuple[Channel, list[JobSummary]]]
"""By guest, or by run directory: the way to its agent, and the jobs that it knows."""


@contextlib.asynccontextmanager
async def _agents(config_path: Path | None, directories: Sequence[Path]) -> AsyncIterator[Found]:
    """Connect to every agent that is asked, and list its jobs."""
    if not directories and config_file(config_path).exists():
        async with open_session(read_config(config_path)) as session:
            for guest, error in session.unreachable.items():
                click.echo(f"{guest}: {error}", err=True)
            yield await _list(session.agents)
    else:
        places = directories or [RUN_DIRECTORY]
        yield await _list({str(place): ControlChannel(place / CONTROL_SOCKET) for place in places})


async def _list(agents: Mapping[str, Channel]) -> Found:
    listed = await asyncio.gather(
        *(agent.ask(AskJobs(), list[JobSummary], ANSWER_MARGIN_S) for agent in agents.values())
    )
    return dict(zip(agents, zip(agents.values(), listed, strict=True), strict=True))


def _of(found: Found, job: str) -> dict[str, Channel]:
    """Return the agents that know a job, by guest.

    :raise UsageError: `unknown-job`.
    """
    known = {
        guest: channel
        for guest, (channel, summaries) in found.items()
        if job in {summary.job for summary in summaries}
    }
    if not known:
        raise UsageError(
            Slug.UNKNOWN_JOB,
            f"No agent knows a job {job!r}.",
            untouched="every job",
            hint="'kawarimi jobs' lists them",
            scope=Scope.JOB,
        )
    return known


def together(summaries: list[JobSummary]) -> JobSummary:
    """Put together what several agents say of the same job."""
    states: Counter[str] = Counter()
    for summary in summaries:
        states.update(summary.states)
    first = summaries[0]
    return JobSummary(
        first.job,
        first.uid,
        first.ranks,
        sum(summary.connected for summary in summaries),
        first.fabric,
        first.fallback,
        first.kind,
        dict(states),
        next((summary.refusal for summary in summaries if summary.refusal), ""),
    )


def _line(summary: JobSummary) -> str:
    states = ", ".join(f"{count} {state}" for state, count in sorted(summary.states.items()))
    ranks = f"{summary.connected}/{summary.ranks} ranks"
    line = f"{summary.job:<12} {ranks:<14} {summary.fabric} ⇄ {summary.fallback:<8} {states}"
    return f"{line}  (cannot be switched: {summary.refusal})" if summary.refusal else line


@click.command()
@_directory_option
@config_option
@json_option
def jobs(directories: tuple[Path, ...], config_path: Path | None, as_json: bool) -> None:
    """List the jobs that can be switched: of all configured guests, or of this machine."""

    async def ask() -> list[JobSummary]:
        async with _agents(config_path, directories) as found:
            every: dict[str, list[JobSummary]] = {}
            for _, summaries in found.values():
                for summary in summaries:
                    every.setdefault(summary.job, []).append(summary)
            return [together(every[job]) for job in sorted(every)]

    summaries = asyncio.run(ask())
    if as_json:
        print_json(summaries)
        return
    for summary in summaries:
        click.echo(_line(summary))


@click.command()
@click.argument("what", default="", metavar="[JOB|OPERATION]")
@_directory_option
@config_option
@json_option
def status(
    what: str, directories: tuple[Path, ...], config_path: Path | None, as_json: bool
) -> None:
    """Say how a job or an operation stands; without either, which operations run.

    Of a job: what its messages go over, rank by rank. Of an operation: the phase of each guest,
    what its migration has moved, and when it should end.
    """
    if not what:
        show_running(as_json)
    elif _JOB.fullmatch(what):
        _show_job(asyncio.run(_status(what, config_path, directories)), as_json)
    else:
        show_operation(what, as_json)


async def _status(job: str, config_path: Path | None, directories: Sequence[Path]) -> JobStatus:
    request = AskStatus(job, STATUS_DEADLINE_S)
    async with _agents(config_path, directories) as found:
        parts = await asyncio.gather(
            *(
                channel.ask(request, JobStatus, STATUS_DEADLINE_S + ANSWER_MARGIN_S)
                for channel in _of(found, job).values()
            )
        )
    ranks = sorted((rank for part in parts for rank in part.ranks), key=lambda rank: rank.vpid)
    return JobStatus(together([part.summary for part in parts]), tuple(ranks))


def _show_job(found: JobStatus, as_json: bool) -> None:
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


@click.command()
@click.argument("job")
@click.option("--to", required=True, metavar="BTL", help="The job's fabric or its fallback.")
@click.option("--deadline", default=30.0, show_default=True, metavar="SECONDS")
@click.option("--poke", is_flag=True, help="Wake ranks that compute outside MPI, by a signal.")
@_directory_option
@config_option
@json_option
def switch(
    job: str,
    to: str,
    deadline: float,
    poke: bool,
    directories: tuple[Path, ...],
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Move a running job to another BTL, and wait until every rank has done it."""

    async def run() -> SwitchReport:
        async with _agents(config_path, directories) as found:
            agents = _of(found, job)
            if len(agents) == 1:  # which leads its own ranks
                (agent,) = agents.values()
                request = AskSwitch(job, to, deadline, poke)
                allowed = deadline + _WAY_BACK_S + ANSWER_MARGIN_S
                return await agent.ask(request, SwitchReport, allowed)
            with guests_held(list(agents)):
                ranks = await find_ranks(list(agents.values()), job)
                return await Switch(job, ranks, to, deadline_s=deadline, poke=poke).run()

    report = asyncio.run(run())
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

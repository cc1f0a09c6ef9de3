"""`kawarimi status`, `abort`, `cleanup` and `guests`: what operations do, and have left."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import click
import msgspec

from kawarimi_bridge.cli.migrate import config_option
from kawarimi_bridge.cli.output import json_option, print_json
from kawarimi_bridge.config import Config, read_config
from kawarimi_bridge.locks import guest_lock, held, holder
from kawarimi_bridge.operations import LOCK, OperationFolder
from kawarimi_bridge.report.account import Account, account
from kawarimi_bridge.session import Session, open_session
from kawarimi_wire.errors import KawarimiError, PreflightRefused, Slug
from kawarimi_wire.messages import ANSWER_MARGIN_S, AskDevices, AskJobs, VerbsDevice
from kawarimi_wire.phases import Phase, PhaseState


class Running(msgspec.Struct, frozen=True):
    """An operation that runs now.

    :ivar phases: the phase that each guest is in.
    :ivar transferred, remaining, rate, expected_s: of the migrations under way, by guest: bytes,
        bytes, bytes per second, seconds to their end at that rate.
    """

    operation: str
    command: str
    pid: int
    elapsed_s: float
    phases: dict[str, str]
    transferred: dict[str, int]
    remaining: dict[str, int]
    rate: dict[str, float]
    expected_s: dict[str, float]


def running_operations() -> list[tuple[OperationFolder, int]]:
    """Return the operations that run now, each with its process."""
    every = ((folder, holder(folder.folder / LOCK)) for folder in OperationFolder.all())
    return [(folder, pid) for folder, pid in every if pid is not None]


def _running(one: Account, pid: int) -> Running:
    phases = {
        guest.move.guest: next(
            (str(row.phase) for row in guest.phases if row.state is PhaseState.RUNNING), "between"
        )
        for guest in one.guests
    }
    moving = [name for name, phase in phases.items() if phase == Phase.MIGRATE]
    latest = {
        entry.guest: entry.facts
        for entry in one.journal
        if entry.guest in moving and "remaining" in entry.facts
    }
    return Running(
        one.operation,
        one.command,
        pid,
        one.duration_s,
        phases,
        {name: int(facts["transferred"]) for name, facts in latest.items()},
        {name: int(facts["remaining"]) for name, facts in latest.items()},
        {name: float(facts["rate"]) for name, facts in latest.items()},
        {
            name: facts["remaining"] / facts["rate"]
            for name, facts in latest.items()
            if facts["rate"]
        },
    )


def show_running(as_json: bool) -> None:
    """Print what runs now."""
    _show([_running(account(folder), pid) for folder, pid in running_operations()], as_json)


def _show(found: list[Running], as_json: bool) -> None:
    if as_json:
        print_json({"operations": found})
        return
    for one in found:
        click.echo(f"{one.operation}  {one.command}, process {one.pid}, {one.elapsed_s:.1f} s")
        for guest, phase in one.phases.items():
            line = f"  {guest}: {phase}"
            if guest in one.remaining:
                line += (
                    f", {one.transferred[guest] >> 20} MiB moved, {one.remaining[guest] >> 20} MiB "
                    f"left at {one.rate[guest] / 2**20:.0f} MiB/s"
                )
            if guest in one.expected_s:
                line += f", {one.expected_s[guest]:.0f} s to go"
            click.echo(line)
    if not found:
        click.echo("no operation runs")


def show_operation(operation: str, as_json: bool) -> None:
    """Print how one operation stands, whether it runs or has ended.

    :raise UsageError: `unknown-operation`.
    """
    folder = OperationFolder.find(operation)
    pid = holder(folder.folder / LOCK)
    if pid is not None:
        _show([_running(account(folder), pid)], as_json)
        return
    one = account(folder)
    if as_json:
        print_json(one)
    else:
        click.echo(f"{one.operation}  {one.command} ended: {one.result or 'killed'}")


@click.command()
@click.argument("operation", default="")
def abort(operation: str) -> None:
    """Ask a running operation to undo what it did, as Ctrl-C does there.

    OPERATION is an id or a beginning of one; it may be left out if just one runs. Past the point
    of no return the operation says that it cannot be undone, and is seen through.
    """
    found = [
        (folder, pid)
        for folder, pid in running_operations()
        if folder.operation.startswith(operation)
    ]
    if len(found) != 1:
        raise PreflightRefused(
            Slug.UNKNOWN_OPERATION,
            f"{len(found)} running operations match {operation!r}.",
            untouched="every operation",
            hint="'kawarimi status' lists those that run",
            facts={"running": [folder.operation for folder, _ in found]},
        )
    ((folder, pid),) = found
    os.kill(pid, signal.SIGINT)
    click.echo(f"{folder.operation} was asked to go back; see 'kawarimi status'")


@click.command()
@config_option
@json_option
def cleanup(config_path: Path | None, as_json: bool) -> None:
    """End the QEMUs that operations have left: empty destinations, and sources left behind.

    Asks every host what is there, trusts nothing that was written down, and touches no guest that
    runs, and none that an operation has now. Jobs that were left on the fallback: `recover`.
    """
    config = read_config(config_path)
    ended = asyncio.run(_cleanup(config))
    if as_json:
        print_json({"ended": ended})
        return
    for one in ended:
        click.echo(f"ended the QEMU of {one['guest']} on {one['host']}, which was {one['status']}")
    if not ended:
        click.echo("nothing was left")


async def _cleanup(config: Config) -> list[dict[str, str]]:
    ended = []
    async with open_session(config) as session:
        for guest in config.guests:
            with held(guest_lock(guest)) as free:
                if free:
                    ended += await _cleanup_guest(session, guest)
    return ended


async def _cleanup_guest(session: Session, guest: str) -> list[dict[str, str]]:
    hypervisor = session.hypervisor
    here = await hypervisor.locate(guest)
    ended = []
    for host in session.config.hosts:
        status = await hypervisor.status(guest, host)
        if host != here and status is not None:
            await hypervisor.discard_destination(guest, host)
            ended.append({"guest": guest, "host": host, "status": status})
    return ended


class GuestRow(msgspec.Struct, frozen=True):
    """A guest as it is now.

    :ivar problem: why it, or its agent, does not answer; empty if both do.
    """

    guest: str
    host: str
    fabric: str
    devices: tuple[str, ...]
    jobs: tuple[str, ...]
    problem: str


@click.command()
@config_option
@json_option
def guests(config_path: Path | None, as_json: bool) -> None:
    """List the configured guests: where each runs, its verbs devices, its jobs."""
    rows = asyncio.run(_guests(read_config(config_path)))
    if as_json:
        print_json({"guests": rows})
        return
    for row in rows:
        devices = ", ".join(row.devices) or "no verbs device"
        jobs = ", ".join(row.jobs) or "no job"
        place = f"{row.host or '-'} ({row.fabric or 'Ethernet'})"
        click.echo(f"{row.guest:<12} {place:<24} {devices}; {jobs}")
        if row.problem:
            click.echo(f"{'':<12} {row.problem}")


async def _guests(config: Config) -> list[GuestRow]:
    async with open_session(config) as session:
        return await asyncio.gather(*(_guest(session, name) for name in config.guests))


async def _guest(session: Session, name: str) -> GuestRow:
    host, problem = "", ""
    devices: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    try:
        host = await session.hypervisor.locate(name)
        if name in session.unreachable:
            raise session.unreachable[name]
        agent = session.agents[name]
        found = await agent.ask(AskDevices(), list[VerbsDevice], ANSWER_MARGIN_S)
        devices = tuple(f"{device.name} {device.port.state}" for device in found)
        listed = await agent.ask(AskJobs(), list[JobName], ANSWER_MARGIN_S)
        jobs = tuple(job.job for job in listed)
    except KawarimiError as error:
        problem = str(error)
    fabric = session.config.fabric(name, host) if host else ""
    return GuestRow(name, host, fabric, devices, jobs, problem)


class JobName(msgspec.Struct, frozen=True):
    """As much of a `JobSummary` as a list of guests shows."""

    job: str

"""The agent's life: what it opens, in which order, and what it leaves when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import kawarimi_wire
from kawarimi_agent.control import CONTROL_SOCKET, RANKS_SOCKET, ControlServer
from kawarimi_agent.desk import Desk
from kawarimi_agent.devices import Devices
from kawarimi_agent.holders import Holders
from kawarimi_agent.jobs import Jobs
from kawarimi_agent.probes import Probes
from kawarimi_agent.ranks import RankServer
from kawarimi_agent.settings import Settings
from kawarimi_agent.sysfs import Sysfs
from kawarimi_wire.errors import ExecutionFailed, Slug
from kawarimi_wire.messages import (
    VERSION,
    AskDevice,
    AskDevices,
    AskProbeClose,
    AskProbeOpen,
    AskProbeRun,
    AskReleased,
    AskTraffic,
    Hello,
)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def hello(guest: str) -> Hello:
    """Return what this agent says of itself."""
    return Hello(
        version=VERSION,
        software=kawarimi_wire.__version__,
        guest=guest,
        boot_id=_BOOT_ID.read_text().strip(),
        pid=os.getpid(),
    )


def notify(state: str) -> None:
    """Tell systemd how we stand (`sd_notify`), if it started us and wants to know."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to_systemd:
        to_systemd.sendto(state.encode(), address)


async def serve(settings: Settings) -> None:
    """Serve ranks, users and bridges until SIGTERM or SIGINT.

    :raise UsageError: `bad-configuration`; nothing is left behind.
    :raise ExecutionFailed: `agent-cannot-listen`; nothing is left behind.
    """
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with AsyncExitStack() as stack:
        ranks = RankServer(settings.run_directory / RANKS_SOCKET)
        desk = Desk(hello(settings.guest), Jobs(ranks))
        sysfs = Sysfs()
        devices, holders, probes = Devices(sysfs), Holders(), Probes(sysfs)
        desk.add(AskDevices, devices.list)
        desk.add(AskDevice, devices.wait)
        desk.add(AskTraffic, devices.traffic)
        desk.add(AskReleased, holders.wait_released)
        desk.add(AskProbeOpen, probes.open)
        desk.add(AskProbeRun, probes.run)
        desk.add(AskProbeClose, probes.close)
        stack.push_async_callback(probes.stop)
        control = ControlServer(settings.run_directory / CONTROL_SOCKET, desk)
        try:
            settings.run_directory.mkdir(parents=True, exist_ok=True)
            stack.push_async_callback(ranks.stop)
            await ranks.start()
            stack.push_async_callback(control.stop)
            await control.start()
        except OSError as error:
            raise ExecutionFailed(
                Slug.AGENT_CANNOT_LISTEN,
                f"the agent cannot listen in {settings.run_directory}: {error.strerror}",
                untouched="every job",
                hint="name a directory of your own with --run-directory",
            ) from error
        if settings.listen:
            # Only who speaks to bridges pays for ZeroMQ.
            from kawarimi_agent.endpoint import Endpoint

            endpoint = Endpoint(settings, desk)
            stack.push_async_callback(endpoint.stop)
            await endpoint.start()
        notify("READY=1")
        await ended.wait()
        notify("STOPPING=1")

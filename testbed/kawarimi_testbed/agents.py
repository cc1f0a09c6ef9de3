"""The guests' agents: their keys and configuration, and how the harness reaches them.

The payload carries every guest's secret key and the harness's public one; the testbed's folder has
the harness's secret key and the guests' public ones, so that whoever may use the testbed can ask
its agents.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import zmq
import zmq.asyncio
from pyroute2 import netns

from kawarimi_agent.settings import PORT
from kawarimi_bridge.agents import AgentClient
from kawarimi_testbed.topology import Topology
from kawarimi_wire.keys import PUBLIC, SECRET, generate, load_pair, load_public

KEYS = "keys"
"""The folder of the keys, in the folder of a testbed that was started with agents."""
HARNESS = "harness"

_IN_GUEST = Path("/opt/kawarimi/agent")


def endpoint(topology: Topology, guest: str) -> str:
    """Return where a guest's agent listens."""
    return f"tcp://{topology.guest_address(guest)}:{PORT}"


def write_agents(topology: Topology, payload: Path, keys: Path) -> None:
    """Make all keys, and write the agents' part of the payload.

    :param payload: the folder in the payload's tree.
    :param keys: the folder for the harness's side.
    """
    bridges = payload / "bridges"
    bridges.mkdir(parents=True)
    shutil.copy2(generate(keys, HARNESS), bridges)
    for guest in topology.guest_names:
        shutil.copy2(generate(payload, guest), keys)
        (payload / f"{guest}.toml").write_text(
            f'listen = "{endpoint(topology, guest)}"\n'
            f'secret_key = "{_IN_GUEST / guest}{SECRET}"\n'
            f'bridges = "{_IN_GUEST / bridges.name}"\n'
        )


async def connect_agent(
    topology: Topology,
    guest: str,
    folder: Path,
    deadline_s: float,
    context: zmq.asyncio.Context | None = None,
) -> AgentClient:
    """Connect to the agent of a guest; see `kawarimi_bridge.agents.AgentClient.connect`.

    :param folder: the testbed's, for the keys.
    :param context: made by `context_in` the testbed's switch namespace; made for this connection
        if there is none.
    """
    keys = folder / KEYS
    return await AgentClient.connect(
        guest,
        endpoint(topology, guest),
        load_public(keys / f"{guest}{PUBLIC}"),
        load_pair(keys / f"{HARNESS}{SECRET}"),
        deadline_s,
        context=context or context_in(topology.switch_namespace),
    )


def context_in(namespace: str) -> zmq.asyncio.Context:
    """Return a ZeroMQ context whose connections are made in a network namespace.

    It is ZeroMQ's own threads that connect. They start with the first socket, and are in the
    namespace of the thread that makes it, which here never comes back.

    :raise OSError: there is no such namespace.
    """
    context = zmq.asyncio.Context()
    failed: list[OSError] = []

    def start() -> None:
        try:
            netns.setns(namespace, flags=0)  # of this thread alone
            zmq.Socket(context, zmq.PAIR).close()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return context

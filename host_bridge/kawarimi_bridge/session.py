"""What every command of the bridge needs: the guests' agents, and their hypervisor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from kawarimi_bridge.agents import AgentClient
from kawarimi_bridge.config import Config
from kawarimi_bridge.qemu_driver import QemuDriver
from kawarimi_wire.errors import KawarimiError
from kawarimi_wire.keys import load_pair

CONNECT_DEADLINE_S = 10.0


@dataclass
class Session:
    """Connections to what the configuration names.

    :ivar agents: the clients of the guests whose agent answers.
    :ivar unreachable: why each of the others does not.
    """

    config: Config
    hypervisor: QemuDriver
    agents: dict[str, AgentClient] = field(default_factory=dict)
    unreachable: dict[str, KawarimiError] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def open_session(config: Config, transcripts: Path | None = None) -> AsyncIterator[Session]:
    """Connect to every configured guest's agent; monitors are connected when they are needed.

    :param transcripts: a folder for what was said to each monitor; None for none.
    :raise UsageError: `bad-configuration`: the bridge has no keys.
    """
    keys = load_pair(Path(config.key))
    session = Session(config, QemuDriver(config, transcripts))

    async def connect(name: str) -> None:
        guest = config.guest(name)
        try:
            session.agents[name] = await AgentClient.connect(
                name, guest.agent, guest.agent_key.encode(), keys, CONNECT_DEADLINE_S
            )
        except KawarimiError as error:
            session.unreachable[name] = error

    try:
        await asyncio.gather(*(connect(name) for name in config.guests))
        # In the configuration's order, not in that of the answers.
        clients = session.agents
        session.agents = {name: clients[name] for name in config.guests if name in clients}
        yield session
    finally:
        await asyncio.gather(*(client.close() for client in session.agents.values()))
        await session.hypervisor.close()

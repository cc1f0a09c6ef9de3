"""An agent's endpoint and desk in the test's own process, reached over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from kawarimi_agent.daemon import hello
from kawarimi_agent.desk import Desk
from kawarimi_agent.endpoint import Endpoint
from kawarimi_agent.jobs import Jobs
from kawarimi_agent.ranks import RankServer
from kawarimi_agent.settings import Settings
from kawarimi_bridge.agents import AgentClient
from kawarimi_wire.keys import KeyPair, generate, load_pair, load_public

GUEST = "vm1"


class Site:
    """Keys for an agent, for its bridge and for a stranger; and whoever uses them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("agent", "bridge", "stranger"):
            generate(folder / name, name)
        self.bridge = load_pair(folder / "bridge/bridge.key_secret")
        self.stranger = load_pair(folder / "stranger/stranger.key_secret")
        self.agent_key = load_public(folder / "agent/agent.key")
        self.desk = Desk(hello(GUEST), Jobs(RankServer(folder / "ranks.sock")))
        self.settings = Settings(
            guest=GUEST,
            run_directory=folder,
            listen="tcp://127.0.0.1:*",
            secret_key=folder / "agent/agent.key_secret",
            bridges=folder / "bridge",
        )

    @asynccontextmanager
    async def endpoint(self, **changes: object) -> AsyncIterator[Endpoint]:
        endpoint = Endpoint(msgspec.structs.replace(self.settings, **changes), self.desk)
        await endpoint.start()
        try:
            yield endpoint
        finally:
            await endpoint.stop()

    @asynccontextmanager
    async def client(
        self, endpoint: str, *, keys: KeyPair | None = None, guest: str = GUEST
    ) -> AsyncIterator[AgentClient]:
        client = await AgentClient.connect(guest, endpoint, self.agent_key, keys or self.bridge, 5)
        try:
            yield client
        finally:
            await client.close()

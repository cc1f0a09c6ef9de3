"""Lets TCP between the guests notice quickly that a guest which stood still is back.

A segment that is sent to a guest while it stands still is lost. Linux sends it again after 200 ms
at the earliest, and doubles that each time: several times QEMU's own downtime. While an operation
runs, the routes between the affected guests say otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from types import NoneType

from kawarimi_bridge.config import Config
from kawarimi_wire.messages import ANSWER_MARGIN_S, AskRetransmit, Channel

LEAST_S = 0.01
"""Above what one exchange takes in a guest that does not stand still."""


@contextlib.asynccontextmanager
async def quick_retransmission(
    config: Config, agents: Mapping[str, Channel], guests: Sequence[str]
) -> AsyncIterator[None]:
    """Set the least retransmission time-out between guests for as long as the context lasts.

    A guest that refuses is left as it is: this is for speed alone.
    """

    async def set_all(least_s: float) -> None:
        await asyncio.gather(
            *(
                agents[guest].ask(
                    AskRetransmit(
                        tuple(config.guest(other).address for other in guests if other != guest),
                        least_s,
                    ),
                    NoneType,
                    ANSWER_MARGIN_S,
                )
                for guest in guests
            ),
            return_exceptions=True,
        )

    await set_all(LEAST_S)
    try:
        yield
    finally:
        await set_all(0.0)

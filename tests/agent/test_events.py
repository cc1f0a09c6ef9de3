"""The kernel's events, from the kernel."""

from __future__ import annotations

import asyncio
import time

import pytest

from kawarimi_agent import tools
from kawarimi_agent.events import KernelEvents

pytestmark = pytest.mark.root

ADDRESS = "127.66.0.1/32"


async def test_nothing_happens() -> None:
    began = time.monotonic()
    with KernelEvents() as events:
        await events.changed(0.05)
    assert time.monotonic() - began >= 0.05


async def test_an_address_comes_and_goes() -> None:
    began = time.monotonic()
    with KernelEvents() as events:
        waiting = asyncio.create_task(events.changed(20))
        await asyncio.sleep(0)
        await tools.run("ip", "address", "add", ADDRESS, "dev", "lo")
        await waiting
        # What happens while nobody waits is not lost.
        await tools.run("ip", "address", "del", ADDRESS, "dev", "lo")
        await asyncio.sleep(0.05)
        await events.changed(20)
    assert time.monotonic() - began < 10

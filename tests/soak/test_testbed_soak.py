"""Hours in minutes: what ten rounds do not show. `make soak`."""

from __future__ import annotations

import asyncio
import json

import pytest

from kawarimi_testbed.mpi import mpirun
from kawarimi_testbed.topology import Topology

pytestmark = [pytest.mark.soak, pytest.mark.qemu, pytest.mark.timeout(3600)]

MOVES = 50
ROUNDS = 100


async def test_a_hundred_rounds_of_unplug_and_plug(start_testbed):
    async with start_testbed(Topology(name="soak", guests=1)) as testbed:
        vm1 = testbed.guest("vm1")
        for _ in range(ROUNDS):
            await vm1.unplug()
            await vm1.plug()
            await vm1.wait_verbs()


async def test_fifty_moves_there_and_back_under_a_tcp_job(start_testbed):
    async with start_testbed(Topology(name="soak"), with_hca=False) as testbed:
        vm1 = testbed.guest("vm1")
        seconds = 5 * MOVES
        words = mpirun(
            testbed.topology, ["vm1", "vm2"], ["ring", str(seconds), "16384", "/run/on"], btl="tcp"
        )
        job = asyncio.create_task(vm1.run(words, deadline_s=seconds + 300))
        await vm1.run("until [ -e /run/on ]; do sleep 0.05; done", deadline_s=60)
        for _ in range(MOVES):
            await vm1.migrate("hostb")
            await vm1.migrate("hosta")
        assert json.loads((await job).stdout)["errors"] == 0

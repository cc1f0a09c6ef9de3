"""What ten rounds do not show. `make soak`."""

from __future__ import annotations

import asyncio
import json

import pytest

from kawarimi_testbed.mpi import mpirun
from kawarimi_testbed.topology import Topology

pytestmark = [pytest.mark.soak, pytest.mark.qemu, pytest.mark.timeout(3600)]

MOVES = 50
ROUNDS = 100
LONGEST_S = 3000
MARKER = "/run/on"


async def test_a_hundred_rounds_of_unplug_and_plug(start_testbed):
    async with start_testbed(Topology(name="soak", guests=1)) as testbed:
        vm1 = testbed.guest("vm1")
        for _ in range(ROUNDS):
            await vm1.unplug()
            await vm1.plug()
            await vm1.wait_verbs()


async def test_fifty_moves_there_and_back_under_a_tcp_job(start_testbed, figure):
    async with start_testbed(Topology(name="soak"), with_hca=False) as testbed:
        vm1 = testbed.guest("vm1")
        command = ["ring", str(LONGEST_S), "16384", MARKER]
        words = mpirun(testbed.topology, ["vm1", "vm2"], command, btl="tcp")
        job = asyncio.create_task(vm1.run(words, deadline_s=LONGEST_S + 60))
        await vm1.run(f"until [ -e {MARKER} ]; do sleep 0.05; done", deadline_s=60)
        moves = []
        for _ in range(MOVES):
            for host in ("hostb", "hosta"):
                moves.append(await vm1.migrate(host))
                assert not job.done(), "the job must still be running when the guest has moved"
        await vm1.run(["rm", MARKER])  # which ends the ring
        report = json.loads((await job).stdout)
        assert report["errors"] == 0
        down = sorted(move.downtime_s for move in moves)
        figure(
            f"{len(moves)} moves, downtime {down[0]:.3f}/{down[len(down) // 2]:.3f}/"
            f"{down[-1]:.3f} s (min/median/max), longest stall {report['longest_s']:.3f} s"
        )

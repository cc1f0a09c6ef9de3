"""Whole clusters move under a running job: all ways there are, all phases interrupted, both modes.

Everything through the command line, as an operator would; the ring checks every byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest

from cluster import Operator, assert_fabric, phase_of, states, verbs_traffic
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.job import running_ring
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import DEFAULT_HOSTS, HostSpec, Topology
from kawarimi_wire.errors import ExecutionFailed, ExitCode
from kawarimi_wire.phases import Phase, PhaseState

CYCLES = int(os.environ.get("KAWARIMI_CYCLES", "1"))
"""Times that a job goes all ways; `make soak` asks for five."""
WAYS = ("hostb", "hostd", "hostc", "hosta")
"""From hosta: InfiniBand → Ethernet → Ethernet → InfiniBand (another) → InfiniBand (another)."""
HOSTS = (*DEFAULT_HOSTS, HostSpec("hostd", None))
SKIPPED_WITHOUT_FABRIC = (Phase.PLUG, Phase.REPROBE, Phase.RESELECT)

pytestmark = pytest.mark.timeout(1800 if CYCLES > 1 else 300)


@pytest.fixture(scope="module")
async def testbed(start_testbed) -> AsyncIterator[Testbed]:
    async with start_testbed(Topology(name="job", hosts=HOSTS, agents=True)) as testbed:
        yield testbed


@pytest.fixture(scope="module")
def operator(testbed) -> Operator:
    return Operator(testbed, testbed.logs / "bridge")


@pytest.mark.parametrize("ranks_per_guest", [1, 2])
async def test_all_ways(testbed, operator, figure, ranks_per_guest):
    await operator.bring("hosta")
    guests = operator.guests
    downtime, gaps = [], []
    async with running_ring(testbed, guests, ranks_per_guest=ranks_per_guest) as job:
        await assert_fabric(testbed, guests, "hosta")
        for _ in range(CYCLES):
            for host in WAYS:
                before = await job.laps()
                record = await operator.migrate(host)
                await assert_fabric(testbed, guests, host)
                fabric = testbed.topology.host(host).fabric
                for name, ended in zip(guests, states(record), strict=True):
                    skipped = {p for p, state in ended.items() if state is PhaseState.SKIPPED}
                    assert skipped >= set(() if fabric else SKIPPED_WITHOUT_FABRIC), name
                    assert ended[Phase.MIGRATE] is PhaseState.DONE
                    assert (ended[Phase.RESELECT] is PhaseState.DONE) == bool(fabric)
                assert (await job.laps())[-1].iterations > before[-1].iterations
                downtime += [guest.downtime_s for guest in record.guests]
                gaps.append(record.longest_gap_s)
    assert job.report is not None
    assert job.report.errors == 0
    figure(
        f"{CYCLES * len(WAYS)} moves of both guests; QEMU's downtime at most "
        f"{max(downtime) * 1e3:.0f} ms, a rank's longest gap in a switch "
        f"{max(gaps) * 1e3:.0f} ms, the program's longest exchange "
        f"{job.report.longest_s * 1e3:.0f} ms"
    )


async def test_a_job_started_without_hca_gains_one(testbed, operator):
    await operator.bring("hostb")
    async with running_ring(testbed, operator.guests, ranks_per_guest=2) as job:
        assert await verbs_traffic(testbed.guest("vm1")) is None
        await operator.migrate("hostc")
        await assert_fabric(testbed, operator.guests, "hostc")
    assert job.report is not None
    assert job.report.errors == 0


async def test_one_guest_moves_and_the_other_takes_part(testbed, operator):
    """The job leaves the fabric in both guests, and comes back to it with the guest that left."""
    await operator.bring("hosta")
    stays = testbed.guest("vm2")
    async with running_ring(testbed, operator.guests) as job:
        await operator.operate("migrate", "vm1=hostb")
        assert await verbs_traffic(stays) == 0
        await operator.operate("migrate", "vm1=hosta")
        await assert_fabric(testbed, operator.guests, "hosta")
    assert job.report is not None
    assert job.report.errors == 0


BEFORE = (Phase.PREPARE, Phase.DRAIN, Phase.RELEASE, Phase.UNPLUG, Phase.MIGRATE)
"""Phases in which an operation that is interrupted goes back."""
AFTER = (Phase.PLUG, Phase.REPROBE, Phase.RESELECT)


async def test_interrupted_in_every_phase(testbed, operator):
    """Before the point of no return: back. After it: told that it cannot be, and seen through."""
    await operator.bring("hosta")
    guests = operator.guests
    async with running_ring(testbed, guests, ranks_per_guest=2) as job:
        for phase in BEFORE:
            async with operator.begun("migrate", *guests, "--to", "hostc") as begun:
                await begun.until_running(phase)
                begun.process.send_signal(signal.SIGINT)
                code, record, said = await begun.end()
            assert (code, record.result) == (ExitCode.INTERRUPTED, "rolled-back"), (phase, said)
            assert "rolling back" in said
            await assert_fabric(testbed, guests, "hosta")
        places = ["hosta", "hostc"]
        for phase in AFTER:
            places.reverse()
            async with operator.begun("migrate", *guests, "--to", places[0]) as begun:
                await begun.until_running(phase)
                begun.process.send_signal(signal.SIGINT)
                code, record, said = await begun.end()
            assert (code, record.result) == (ExitCode.COMPLETED, "completed"), (phase, said)
            assert "cannot be undone" in said
            await assert_fabric(testbed, guests, places[0])
    assert job.report is not None
    assert job.report.errors == 0


async def test_watched_and_aborted(testbed, operator):
    """`status` sees it move, another operation is kept out, `abort` brings everything back."""
    await operator.bring("hosta")
    guests = operator.guests
    async with running_ring(testbed, guests) as job:
        async with operator.begun("migrate", *guests, "--to", "hostb") as begun:
            await begun.until(lambda entry: "remaining" in entry.facts)
            shown = await operator.run("status")
            assert "MiB left" in shown.stdout
            await operator.refused(
                ExitCode.REFUSED, "guest-busy", "migrate", "vm1", "--to", "hostc"
            )
            assert (await operator.run("abort")).exit_code == 0
            code, record, _ = await begun.end()
        assert (code, record.result) == (ExitCode.INTERRUPTED, "rolled-back")
        await assert_fabric(testbed, guests, "hosta")
    assert job.report is not None
    assert job.report.errors == 0


async def test_the_bridge_is_killed(testbed, operator):
    """What it leaves is named, ended by `cleanup`, and put right by `recover`."""
    await operator.bring("hosta")
    guests = operator.guests
    async with running_ring(testbed, guests) as job:
        async with operator.begun("migrate", *guests, "--to", "hostb") as begun:
            await begun.until_running(Phase.MIGRATE)
            begun.process.kill()
            await begun.process.wait()
        operation = operator.operations()[-1]
        assert "killed" in (await operator.run("status", operation)).stdout
        cleaned = await operator.run("cleanup")
        assert cleaned.exit_code == 0
        assert "ended the QEMU of vm1" in cleaned.stdout
        record = await operator.operate("recover", *guests)
        assert record.command == "recover"
        await assert_fabric(testbed, guests, testbed.guest("vm1").host)
    assert job.report is not None
    assert job.report.errors == 0


async def take_link_down(guest: Guest, host: str) -> None:
    """Take down the link of the HCA that a guest gets on a host, as soon as it gets it."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(ExecutionFailed):  # no QEMU there, or none that has the device
                await guest.follow()
                if guest.host == host:
                    await guest.monitor.execute("set_link", {"name": "hca0", "up": False})
                    return
            await asyncio.sleep(0.01)


async def test_a_link_that_never_comes_up(testbed, operator):
    await operator.bring("hostb")
    guests = operator.guests
    async with running_ring(testbed, guests) as job:
        breaking = [take_link_down(guest, "hostc") for guest in testbed.guests.values()]
        moving = operator.migrate("hostc", "--deadline", "reprobe=5", code=ExitCode.DEGRADED)
        record, *_ = await asyncio.gather(moving, *breaking)
        assert record.error is not None
        assert record.error["slug"] == "hca-not-ready"
        assert phase_of(record.guests[0], Phase.RESELECT).state is PhaseState.SKIPPED
        assert await verbs_traffic(testbed.guest("vm1")) == 0
        for guest in testbed.guests.values():
            await guest.monitor.execute("set_link", {"name": "hca0", "up": True})
        await operator.operate("recover", *guests)
        await assert_fabric(testbed, guests, "hostc")
    assert job.report is not None
    assert job.report.errors == 0

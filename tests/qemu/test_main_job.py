"""Operations that do not go straight through, under a running job: interrupted, aborted, killed.

Everything through the command line, as an operator would; the ring checks every byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator

import pytest

from cluster import Operator, assert_fabric, phase_of, verbs_traffic
from kawarimi_agent.jobs import JobSummary
from kawarimi_bridge.operations import OperationFolder
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.job import RingJob, running_ring
from kawarimi_testbed.testbed import Testbed
from kawarimi_wire.errors import ExecutionFailed, ExitCode
from kawarimi_wire.messages import ANSWER_MARGIN_S, AskJobs
from kawarimi_wire.phases import PHASES, Phase, PhaseState
from soaked import in_soak

PAUSE_S = 0.001
"""Between two exchanges: operations on guests that are not fully loaded are over sooner."""


@pytest.fixture(scope="module")
def testbed(at_home: Testbed) -> Testbed:
    return at_home


@pytest.fixture(scope="module")
async def job(testbed, operator, kind) -> AsyncIterator[RingJob]:
    """One job for most of the tests here; nothing disturbs it."""
    async with running_ring(testbed, operator.guests, pause_s=PAUSE_S, kind=kind) as job:
        yield job
    assert job.report is not None
    assert (job.report.errors, job.said) == (0, [])
    assert job.report.iterations > 0


async def snapshot(testbed: Testbed) -> dict[str, object]:
    """Return what an operation would change: QEMUs, devices, addresses, routes, ranks."""
    found: dict[str, object] = {"processes": sorted(await testbed.keeper.processes())}
    queue_pairs = "rdma resource show qp | grep -v GSI | sed 's/ rq-psn.*//'"  # which count on
    script = f"rdma link show; {queue_pairs}; ip -o address; ip route"
    for name, guest in testbed.guests.items():
        found[name] = (await guest.run(script, check=False)).stdout
        agent = await guest.agent()
        found[f"{name} jobs"] = await agent.ask(AskJobs(), list[JobSummary], ANSWER_MARGIN_S)
        ports = await guest.monitor.execute("qom-list", {"path": "/machine/peripheral"})
        found[f"{name} devices"] = sorted(entry["name"] for entry in ports)
        found[f"{name} migration"] = (await guest.monitor.execute("query-migrate")).get("status")
    return found


async def test_looking_touches_nothing(testbed, operator, job):
    before = await snapshot(testbed), operator.operations()
    for words in (("check",), ("migrate", "--dry-run")):
        done = await operator.run(*words, "vm1", "vm2", "--to", "hostb", "--json")
        assert done.exit_code == 0, done
        plan = json.loads(done.stdout)
        assert [row["phase"] for row in plan["phases"]] == [row.phase for row in PHASES]
        assert plan["devices"]["vm1"]["mac"] == testbed.topology.hca_mac("hosta", "vm1")
        assert plan["jobs"][0]["guests"] == ["vm1", "vm2"]
        assert (await snapshot(testbed), operator.operations()) == before


async def test_frozen_and_live(testbed, operator, job, figure):
    """Frozen, the program stands still for as long as its guests move; live, it does not."""
    await operator.bring("hosta")
    longest = {}
    for mode, host in (("frozen", "hostc"), ("live", "hosta")):
        before = len(job.laps)
        record = await operator.migrate(host, "--mode", mode)
        assert record.mode == mode
        await assert_fabric(testbed, operator.guests, host)
        longest[mode] = max(lap.longest_s for lap in job.laps[before:])
        if mode == "frozen":
            moved_s = min(phase_of(guest, Phase.MIGRATE).duration_s for guest in record.guests)
            assert longest[mode] > moved_s
    assert longest["live"] < longest["frozen"] / 2
    figure(
        f"the program's longest exchange: frozen {longest['frozen']:.2f} s, "
        f"live {longest['live']:.2f} s"
    )


async def test_one_guest_moves_and_the_other_takes_part(testbed, operator, job):
    """The job leaves the fabric in both guests, and comes back to it with the guest that left."""
    await operator.bring("hosta")
    await operator.operate("migrate", "vm1=hostb")
    assert await verbs_traffic(testbed.guest("vm2")) == 0
    await operator.operate("migrate", "vm1=hosta")
    await assert_fabric(testbed, operator.guests, "hosta")


IN_SOAK = (Phase.PREPARE, Phase.DRAIN, Phase.RELEASE, Phase.UNPLUG)
BEFORE = [Phase.MIGRATE, *map(in_soak, IN_SOAK)]
"""Phases in which an operation that is interrupted goes back."""
AFTER = [Phase.REPROBE, *map(in_soak, (Phase.PLUG, Phase.RESELECT))]


async def interrupt(operator: Operator, to: str, phase: Phase) -> tuple[int, str, str]:
    """Interrupt a move in a phase; return its exit code, its result, and what it said."""
    async with operator.begun("migrate", *operator.guests, "--to", to) as begun:
        await begun.until_running(phase)
        begun.process.send_signal(signal.SIGINT)
        code, record, said = await begun.end()
    return code, record.result, said


@pytest.mark.parametrize("phase", BEFORE)
async def test_interrupted_before_the_point_of_no_return(testbed, operator, job, phase):
    await operator.bring("hosta")
    code, result, said = await interrupt(operator, "hostc", phase)
    assert (code, result) == (ExitCode.INTERRUPTED, "rolled-back"), said
    assert "rolling back" in said
    journal = OperationFolder(operator.state / "operations" / operator.operations()[-1]).entries()
    proven = "the fabric is proven again" in [entry.what for entry in journal]
    assert proven == (phase in (Phase.UNPLUG, Phase.MIGRATE))
    await assert_fabric(testbed, operator.guests, "hosta")


@pytest.mark.parametrize("phase", AFTER)
async def test_interrupted_after_the_point_of_no_return(testbed, operator, job, phase):
    """It is told that there is no way back, and what was begun is seen through."""
    there = "hosta" if testbed.guest("vm1").host == "hostc" else "hostc"
    code, result, said = await interrupt(operator, there, phase)
    assert (code, result) == (ExitCode.COMPLETED, "completed"), said
    assert "cannot be undone" in said
    await assert_fabric(testbed, operator.guests, there)


async def connections(testbed: Testbed) -> int:
    """Count the connections to the agents from where the bridge speaks."""
    words = ("ip", "netns", "exec", testbed.topology.switch_namespace, "ss", "-Htn")
    asking = await asyncio.create_subprocess_exec(
        *words, "state", "established", "dport", "7117", stdout=asyncio.subprocess.PIPE
    )
    return len((await asking.communicate())[0].splitlines())


async def test_interrupted_in_preflight(testbed, operator, job):
    """As soon as it has a connection to an agent: nothing was begun, and nothing is left."""
    left, before = operator.operations(), await connections(testbed)
    async with operator.begun("migrate", *operator.guests, "--to", "hostb") as begun:
        async with asyncio.timeout(30):
            while await connections(testbed) == before:
                assert begun.process.returncode is None
        begun.process.send_signal(signal.SIGINT)
        _, err = await begun.process.communicate()
    assert begun.process.returncode == ExitCode.INTERRUPTED
    assert b"error [interrupted]" in err
    assert operator.operations() == left


SLOW = ("--bandwidth", "8")
"""MiB/s: long enough for three commands."""


async def test_watched_and_aborted(testbed, operator, job):
    """`status` sees it move, another operation is kept out, `abort` brings everything back."""
    await operator.bring("hosta")
    guests = operator.guests
    async with operator.begun("migrate", *guests, "--to", "hostb", *SLOW) as begun:
        await begun.until(lambda entry: "remaining" in entry.facts)
        shown = await operator.run("status")
        assert "MiB left" in shown.stdout
        await operator.refused(ExitCode.REFUSED, "guest-busy", "migrate", "vm1", "--to", "hostc")
        assert (await operator.run("abort")).exit_code == 0
        code, record, _ = await begun.end()
    assert (code, record.result) == (ExitCode.INTERRUPTED, "rolled-back")
    await assert_fabric(testbed, guests, "hosta")


async def test_the_bridge_is_killed(testbed, operator, job):
    """What it leaves is named, ended by `cleanup`, and put right by `recover`."""
    await operator.bring("hosta")
    guests = operator.guests
    async with operator.begun("migrate", *guests, "--to", "hostb", *SLOW) as begun:
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
    await assert_fabric(testbed, guests, "hosta")


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


async def test_a_link_that_never_comes_up(testbed, operator, kind):
    """A job that was started without any HCA computes on, and gains one when the link is mended."""
    await operator.bring("hostb")
    guests = operator.guests
    async with running_ring(testbed, guests, pause_s=PAUSE_S, kind=kind) as job:
        assert await verbs_traffic(testbed.guest("vm1")) is None
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
    # UCX says once that there is no rc.
    assert job.said == [] or (kind == "ucp" and "UCX  WARN" in job.said[0])

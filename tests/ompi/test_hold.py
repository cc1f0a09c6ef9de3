"""The frozen mode: jobs held still, and what must not hold them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import held_ranks_make_no_progress, hold, rounds
from harness import Job, Launcher, attached

from kawarimi_agent.hold import Hold
from kawarimi_ompi.protocol import Code, Command, Component, Outcome, State
from kawarimi_wire.errors import ExecutionFailed, OutcomeUnknown, Slug

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]


async def components(job: Job, name: str) -> list[Component]:
    """What every rank counted on one BTL."""
    replies = await asyncio.gather(
        *(rank.call(Command(Code.STATUS, 0, 10.0)) for rank in job.ranks)
    )
    return [part for reply in replies for part in reply.components if part.name == name]


async def bytes_under_way(launcher: Launcher, job: Job) -> int:
    """By the kernel's word: bytes of the ranks' TCP connections that nobody has read yet.

    Sent and not acknowledged is no measure: an acknowledgement may be late.
    """
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", launcher.site.namespace),
        *("ss", "-tnpiOH", "src", "10.99.0.1"),
        stdout=asyncio.subprocess.PIPE,
    )
    listed, _ = await asyncio.wait_for(process.communicate(), 20)
    pids = {str(rank.hello.pid) for rank in job.ranks}
    lines = [
        line for line in listed.decode().splitlines() if pids & set(re.findall(r"pid=(\d+)", line))
    ]
    assert lines

    def total(name: str) -> int:
        return sum(int(value) for value in re.findall(rf"\b{name}:(\d+)", " ".join(lines)))

    unread = sum(int(line.split()[1]) for line in lines)
    on_the_way = total("bytes_sent") - total("bytes_retrans") - total("bytes_received")
    return unread + on_the_way + total("notsent")


@pytest.mark.parametrize(("fabric", "fallback"), [("tcp", "vader"), ("vader", "tcp")])
async def test_held_ranks_make_no_progress(
    launcher: Launcher, program: Program, fabric: str, fallback: str
) -> None:
    await held_ranks_make_no_progress(launcher, program("steady"), fabric=fabric, fallback=fallback)


@pytest.mark.parametrize(
    "buffer",
    [{}, {"OMPI_MCA_btl_tcp_sndbuf": "4096", "OMPI_MCA_btl_tcp_rcvbuf": "4096"}],
    ids=["usual-buffers", "small-buffers"],
)
async def test_nothing_is_under_way_while_held(
    launcher: Launcher, program: Program, buffer: dict[str, str]
) -> None:
    """The ranks are parked in the middle of large messages, which small buffers make last."""
    stop = launcher.directory / "stop"
    async with launcher.start(
        program("traffic"), stop, ranks=3, fabric="vader", fallback="tcp", **buffer
    ) as job:
        await job.switch("tcp")
        for _ in range(15):
            holding = hold(job)
            await holding.begin()
            counted = await components(job, "tcp")
            assert sum(c.sent or 0 for c in counted) == sum(c.received or 0 for c in counted) > 0
            assert {c.outstanding for c in counted} == {0}
            assert await bytes_under_way(launcher, job) == 0
            assert await components(job, "tcp") == counted
            await holding.resume()
            await asyncio.sleep(0.02)  # let the program have some of the time
        stop.touch()
        assert "OK" in await job.succeed()


async def test_switches_of_a_held_job(launcher: Launcher, program: Program) -> None:
    """As a frozen migration uses it: held from RELEASE to RESELECT."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=3) as job:
        await attached(job)
        for _ in range(3):
            await job.switch("vader")
            holding = hold(job)
            await holding.begin()
            await job.switch("tcp")
            await job.switch("vader")
            await job.switch("tcp")
            await holding.renew()
            await holding.resume()
        assert job.states() == {State.ATTACHED}
        stop.touch()
        assert "OK" in await job.succeed()


async def test_hold_ends_when_its_agent_is_dead(launcher: Launcher, program: Program) -> None:
    stop, counts = launcher.directory / "stop", launcher.directory / "counts"
    async with launcher.start(program("steady"), stop, "count", counts, ranks=2) as job:
        await hold(job, lease_s=1.5).begin()
        before = rounds(counts)
        await launcher.server.stop()
        stop.touch()
        assert rounds(counts) == before
        assert "OK" in await job.succeed()


async def test_hold_of_a_rank_that_does_not_come(launcher: Launcher, program: Program) -> None:
    """Given up at the deadline: the ranks that were parked run again, and so does the late one."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, "compute", 8, ranks=2) as job:
        await job.printed("COMPUTING")
        with pytest.raises(OutcomeUnknown) as caught:
            await hold(job, deadline_s=0.5).begin()
        assert caught.value.slug is Slug.RANK_NOT_REACHED
        assert caught.value.facts["unanswered"] == ["rank 0"]
        await job.switch("vader", deadline_s=20)
        stop.touch()
        assert "OK" in await job.succeed()


async def test_quiesce_of_a_rank_that_is_not_parked(launcher: Launcher, program: Program) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, ranks=2) as job:
        rank = job.ranks[0]
        quiesce = next(step for step in rank.hello.hold if step.name == "quiesce")
        reply = await rank.call(Command(quiesce.code, rank.epoch, 5.0))
        assert (reply.outcome, reply.held_ns) == (Outcome.REFUSED, 0)
        stop.touch()
        assert "OK" in await job.succeed()


async def test_hold_of_connected_jobs_is_refused(launcher: Launcher, program: Program) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("spawn"), stop, ranks=2, hello=False) as job:
        await job.printed("CONNECTED")
        assert await launcher.server.wait(lambda: len(launcher.server.ranks) == 3, 30)
        spawning = [rank for rank in job.ranks if rank.hello.ranks == 2]
        with pytest.raises(ExecutionFailed) as caught:
            await Hold("test", spawning, lease_s=30, deadline_s=10).begin()
        assert "another job" in caught.value.what
        stop.touch()
        assert "OK" in await job.succeed()

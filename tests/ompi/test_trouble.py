"""Agents that die, ranks that die or do not come, devices that are not there, and bad input."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from harness import Job, Launcher

from kawarimi_agent.coordinator import Switch, preflight
from kawarimi_agent.ranks import Rank, RankServer
from kawarimi_ompi.protocol import (
    MAX_MESSAGE,
    Blob,
    Code,
    Outcome,
    Reply,
    State,
    StepFlag,
    encode_commands,
)
from kawarimi_wire.errors import ExecutionFailed, KawarimiError, PreflightRefused, Slug, UsageError

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]


async def attached(job: Job) -> Job:
    await job.switch(job.ranks[0].hello.fabric)
    return job


def epoch_after(ranks: list[Rank]) -> int:
    return max(rank.epoch for rank in ranks) + 1


async def lead(ranks: list[Rank], steps: list[str], epoch: int) -> None:
    """Run single steps on every rank, the way the coordinator does."""
    hello = ranks[0].hello
    known = {step.name: step for step in hello.leave + hello.take}
    blobs: tuple[Blob, ...] = ()
    for name in steps:
        step = known[name]
        replies = await asyncio.gather(
            *(
                rank.call(
                    step.code,
                    epoch=epoch,
                    deadline_s=10,
                    blobs=blobs if step.has(StepFlag.SCATTER) else (),
                )
                for rank in ranks
            )
        )
        assert [reply.outcome for reply in replies] == [Outcome.OK] * len(ranks), (name, replies)
        if step.has(StepFlag.GATHER):
            blobs = tuple(blob for reply in replies for blob in reply.blobs)


LEAVE = ["prepare", "select", "drain"]
TAKE = ["init", "modex", "add"]


@pytest.mark.parametrize(
    ("done", "by_one"),
    [
        (LEAVE[:1], ""),
        (LEAVE[:2], ""),
        (LEAVE, ""),
        (["quiet"], "fini"),
        (["away", *TAKE[:1]], ""),
        (["away", *TAKE[:2]], ""),
        (["away", *TAKE], ""),
        (["away", *TAKE], "enable"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else value,
)
@pytest.mark.parametrize("to", ["tcp", "vader"])
async def test_agent_dies_between_steps(
    launcher: Launcher, program: Program, done: list[str], by_one: str, to: str
) -> None:
    """Whatever was half done, the agent that comes back finds out and brings it to one state."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=2) as job:
        await attached(job)
        if done[0] == "away":
            await job.switch("vader")
        elif done[0] == "quiet":
            # Drained for certain: the coordinator's own way, stopped before its last step.
            switch = Switch("test", job.ranks, "vader", deadline_s=10)
            switch._steps = switch._steps[:-1]
            await switch.run()
        names = [name for name in done if name not in ("away", "quiet")]
        epoch = epoch_after(job.ranks)
        await lead(job.ranks, names, epoch)
        if by_one:
            await lead(job.ranks[1:], [by_one], epoch)
        await launcher.server.stop()
        await launcher.server.start()
        await job.hello()
        await job.switch(to)
        assert job.states() == {State.ATTACHED if to == "tcp" else State.DETACHED}
        await job.switch("vader")
        await job.switch("tcp")
        stop.touch()
        assert "OK" in await job.succeed()


async def test_job_without_agent_and_agent_that_comes_late(
    launcher: Launcher, program: Program
) -> None:
    stop = launcher.directory / "stop"
    await launcher.server.stop()
    async with launcher.start(program("steady"), stop, ranks=2, hello=False) as job:
        await asyncio.sleep(1)  # the ranks dial in vain meanwhile
        await launcher.server.start()
        await job.hello()
        await job.switch("tcp")
        await launcher.server.stop()
        stop.touch()
        assert "OK" in await job.succeed()


async def test_rank_that_does_not_come_is_left_alone(launcher: Launcher, program: Program) -> None:
    """The deadline holds, nothing has changed, and once the rank is back a switch succeeds."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, "compute", 8, ranks=2) as job:
        await job.printed("COMPUTING")
        clock = asyncio.get_running_loop().time
        began = clock()
        with pytest.raises(ExecutionFailed) as caught:
            await job.switch("vader", deadline_s=0.5)
        assert clock() - began < 7
        assert caught.value.slug is Slug.RANK_NOT_REACHED
        assert caught.value.facts["ranks"] == ["rank 0"]
        await job.switch("tcp", deadline_s=20)
        assert job.states() == {State.ATTACHED}
        await job.switch("vader")
        stop.touch()
        assert "OK" in await job.succeed()


async def test_rank_that_computes_can_be_poked(launcher: Launcher, program: Program) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, "compute", 6, ranks=2) as job:
        await job.printed("COMPUTING")
        for to in ("tcp", "vader", "tcp", "vader"):
            report = await job.switch(to, deadline_s=3, poke=True)
            assert report.changed
        stop.touch()
        assert "OK" in await job.succeed()


async def test_rank_in_a_system_call_is_not_interrupted(
    launcher: Launcher, program: Program
) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, "sleep", 4, ranks=2) as job:
        await job.printed("COMPUTING")
        with pytest.raises(ExecutionFailed):
            await job.switch("vader", deadline_s=0.5, poke=True)
        stop.touch()
        assert "OK" in await job.succeed()


@pytest.mark.parametrize("after", ["prepare", "select", "drain"])
async def test_rank_killed_in_mid_phase(launcher: Launcher, program: Program, after: str) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=3) as job:
        await attached(job)
        await lead(job.ranks, LEAVE[: LEAVE.index(after) + 1], epoch_after(job.ranks))
        ranks = job.ranks
        os.kill(ranks[1].hello.pid, signal.SIGKILL)
        with pytest.raises(ExecutionFailed) as caught:
            await Switch("test", ranks, "vader", deadline_s=10).run()
        assert caught.value.slug is Slug.RANK_GONE
        assert await job.exit_code() != 0


async def test_finalize_during_a_switch(launcher: Launcher, program: Program) -> None:
    """A job may end at any moment of a switch; the switch then fails, the job does not."""
    for number in range(6):
        stop = launcher.directory / f"stop{number}"
        async with launcher.start(program("steady"), stop, ranks=2) as job:
            await attached(job)
            stop.touch()
            await asyncio.sleep(number * 0.002)  # a moment further on in each turn
            with contextlib.suppress(KawarimiError, IndexError):  # the ranks have left
                await job.switch("vader", deadline_s=5)
            assert "OK" in await job.succeed()


async def test_fabric_without_device_and_then_with_another_address(
    launcher: Launcher, program: Program
) -> None:
    def address(verb: str, value: str) -> None:
        command = ["ip", "-n", launcher.site.namespace, "addr", verb, value, "dev", "kwt0"]
        subprocess.run(command, check=True, timeout=10)

    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=2) as job:
        await attached(job)
        await job.switch("vader")
        address("del", "10.99.0.1/24")
        try:
            with pytest.raises(ExecutionFailed) as caught:
                await job.switch("tcp")
            assert caught.value.slug is Slug.FABRIC_ABSENT
            assert job.states() == {State.DETACHED}
            address("add", "10.99.0.77/24")
            await job.switch("tcp")
            await job.switch("vader")
            address("del", "10.99.0.77/24")
        finally:
            address("add", "10.99.0.1/24")
        stop.touch()
        assert "OK" in await job.succeed()


@pytest.mark.parametrize(
    ("mode", "variables", "reason"),
    [
        ("multiple", {}, "MPI_THREAD_MULTIPLE"),
        ("", {"OMPI_MCA_btl": "tcp,self"}, "fallback BTL is not in use"),
        ("", {"OMPI_MCA_btl": "vader,self"}, "excluded"),
        ("", {"OMPI_MCA_pml_ob1_use_all_rdma": "1"}, "use_all_rdma"),
        (
            "",
            {"OMPI_MCA_hook_kawarimi_fabric": "nothing", "OMPI_MCA_btl": "^openib,ofi"},
            "no loadable component",
        ),
        ("", {"OMPI_MCA_hook_kawarimi_fallback": "tcp"}, "same BTL"),
    ],
)
async def test_refused_at_preflight(
    launcher: Launcher,
    program: Program,
    mode: str,
    variables: dict[str, str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the launcher would have refused, the ranks refuse too."""
    monkeypatch.setattr("kawarimi_ompi.launcher._check", lambda *_: None)
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, mode, ranks=2, **variables) as job:
        with pytest.raises(PreflightRefused) as caught:
            preflight("test", job.ranks)
        assert caught.value.slug is Slug.JOB_NOT_SWITCHABLE
        assert reason in caught.value.what
        rank = job.ranks[0]
        reply = await rank.call(rank.hello.leave[0].code, epoch=1, deadline_s=5)
        assert reply.outcome is Outcome.REFUSED
        stop.touch()
        assert "OK" in await job.succeed()


async def test_window_of_osc_rdma_is_refused(
    launcher: Launcher, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kawarimi_ompi.launcher._check", lambda *_: None)
    stop = launcher.directory / "stop"
    async with launcher.start(
        program("steady"),
        *(stop, "window"),
        ranks=2,
        fabric="vader",
        fallback="tcp",
        OMPI_MCA_osc="rdma",
    ) as job:
        await job.printed("BEGIN")
        with pytest.raises(ExecutionFailed) as caught:
            await job.switch("tcp")
        assert caught.value.slug is Slug.STEP_REFUSED
        assert "osc/rdma" in caught.value.what
        assert job.states() == {State.ATTACHED}
        stop.touch()
        assert "OK" in await job.succeed()


async def test_jobs_that_are_connected_are_refused(launcher: Launcher, program: Program) -> None:
    """Spawned and spawning job know nothing of each other's addresses; neither is switched."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("spawn"), stop, ranks=2, hello=False) as job:
        await job.printed("CONNECTED")
        assert await launcher.server.wait(lambda: len(launcher.server.ranks) == 3, 30)
        names = [summary.job for summary in launcher.jobs.summaries()]
        assert len(names) == 2
        spawning = next(s.job for s in launcher.jobs.summaries() if s.ranks == 2)
        for to in ("tcp", "vader"):
            with pytest.raises(KawarimiError) as caught:
                await launcher.jobs.switch(spawning, 0, to, deadline_s=10, poke=False)
            assert caught.value.slug is Slug.STEP_REFUSED, caught.value
            assert "another job" in caught.value.what
        stop.touch()
        assert "OK" in await job.succeed()


async def test_unknown_btl_and_incomplete_job(launcher: Launcher, program: Program) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, ranks=2) as job:
        with pytest.raises(UsageError) as usage:
            await job.switch("openib")
        assert usage.value.slug is Slug.UNKNOWN_BTL
        with pytest.raises(PreflightRefused) as refused:
            Switch("test", job.ranks[:1], "tcp", deadline_s=5)
        assert refused.value.slug is Slug.JOB_INCOMPLETE
        with pytest.raises(UsageError) as unknown:
            await launcher.jobs.switch("9.9", 0, "tcp", deadline_s=5, poke=False)
        assert unknown.value.slug is Slug.UNKNOWN_JOB
        name = launcher.jobs.summaries()[0].job
        with pytest.raises(PreflightRefused) as foreign:
            await launcher.jobs.switch(name, 12345, "tcp", deadline_s=5, poke=False)
        assert foreign.value.slug is Slug.JOB_NOT_YOURS
        stop.touch()
        await job.succeed()


async def test_late_repeated_and_unknown_commands(launcher: Launcher, program: Program) -> None:
    """Each is answered with what is wrong with it, and changes nothing."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=2) as job:
        await attached(job)
        rank = job.ranks[0]
        codes = {step.name: step.code for step in rank.hello.leave + rank.hello.take}

        async def ask(code: int, **options: object) -> Reply:
            options.setdefault("epoch", rank.epoch)
            options.setdefault("deadline_s", 5)
            return await rank.call(code, **options)  # type: ignore[arg-type]

        assert (await ask(codes["fini"])).outcome is Outcome.REFUSED
        assert (await ask(codes["select"])).outcome is Outcome.REFUSED
        assert (await ask(codes["init"])).outcome is Outcome.REFUSED
        assert (await ask(codes["modex"])).outcome is Outcome.REFUSED
        assert (await ask(codes["add"])).outcome is Outcome.REFUSED
        assert (await ask(codes["enable"])).outcome is Outcome.OK
        assert (await ask(codes["prepare"], epoch=rank.epoch - 1)).outcome is Outcome.STALE
        assert (await ask(4711)).outcome is Outcome.UNKNOWN
        assert (await ask(codes["prepare"], expires_s=0)).outcome is Outcome.EXPIRED
        assert rank.state is State.ATTACHED
        for name in ("prepare", "select", "drain"):
            for _ in range(3):
                assert (await ask(codes[name])).outcome is Outcome.OK
        assert (await ask(Code.ABORT)).outcome is Outcome.OK
        assert (await ask(Code.ABORT)).outcome is Outcome.OK
        assert rank.state is State.ATTACHED
        await job.switch("vader")
        assert (await ask(codes["fini"])).outcome is Outcome.OK
        assert (await ask(Code.ABORT)).outcome is Outcome.OK
        assert rank.state is State.DETACHED
        await job.switch("tcp")
        stop.touch()
        assert "OK" in await job.succeed()


def mutations(good: bytes) -> list[bytes]:
    """Packets that are wrong in one way each."""

    def with_word(at: int, value: int) -> bytes:
        return good[:at] + struct.pack("=I", value) + good[at + 4 :]

    blob = good + bytes(16) + b"key" + bytes(61)
    with_blob = blob[:8] + struct.pack("=I", len(blob)) + blob[12:32] + b"\1" + blob[33:]
    return [
        b"\0",
        good[:15],
        good[:-1],
        good + b"\0",
        with_word(0, 0x12345678),
        with_word(4, 99),
        with_word(8, 2**32 - 1),
        with_word(32, 2**32 - 1),
        with_blob[:40] + struct.pack("=III", 0, 0, 2**32 - 1) + with_blob[52:],
        with_blob[:56] + b"k" * 64,
        bytes(MAX_MESSAGE + 1),
    ]


async def test_malformed_packets(launcher: Launcher, program: Program) -> None:
    """The rank answers each with BAD_MESSAGE, computes on, and keeps the connection."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, ranks=2) as job:
        rank = job.ranks[0]
        taken: list[Reply] = []
        take = rank.take
        rank.take = lambda reply: (taken.append(reply), take(reply))[1]  # type: ignore[method-assign]
        good = encode_commands(7000, Code.STATUS, epoch=0, deadline_s=5)[0]
        bad = mutations(good)
        for packet in bad:
            await asyncio.get_running_loop().sock_sendall(rank._socket, packet)
        complete = await launcher.server.wait(lambda: len(taken) == len(bad), 10)
        assert complete, taken
        assert {reply.outcome for reply in taken} == {Outcome.BAD_MESSAGE}
        assert all(reply.text for reply in taken)
        await job.switch("tcp")
        stop.touch()
        assert "OK" in await job.succeed()


async def test_agent_of_another_user_is_not_listened_to(
    launcher: Launcher, program: Program
) -> None:
    listener = """
import os, socket, sys
directory = sys.argv[1]
os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.bind(directory + "/ranks.sock"); os.chmod(directory + "/ranks.sock", 0o777)
s.listen(); s.settimeout(20)
connection, _ = s.accept()
connection.settimeout(5)
print("HEARD", len(connection.recv(65536)))
"""
    await launcher.server.stop()
    open_to_all = launcher.directory / "open"
    open_to_all.mkdir(mode=0o777)
    open_to_all.chmod(0o777)
    launcher.socket = open_to_all / "ranks.sock"
    for parent in launcher.directory.parents:
        if parent.owner() == "root" and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    launcher.directory.chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        *("/usr/bin/python3", "-c", listener, str(open_to_all)), stdout=subprocess.PIPE
    )
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, ranks=2, hello=False) as job:
        said, _ = await asyncio.wait_for(process.communicate(), 30)
        assert said.split() == [b"HEARD", b"0"]
        stop.touch()
        assert "OK" in await job.succeed()


async def test_hold_parks_the_ranks_and_ends_by_itself(
    launcher: Launcher, program: Program
) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, ranks=2) as job:
        await attached(job)
        epoch = epoch_after(job.ranks)

        async def all_of(code: int, **options: float) -> list[Reply]:
            calls: list[Awaitable[Reply]] = [
                rank.call(code, epoch=epoch, deadline_s=5, **options) for rank in job.ranks
            ]
            return list(await asyncio.gather(*calls))

        await all_of(Code.HOLD, expires_s=30)
        before = await all_of(Code.STATUS)
        await asyncio.sleep(0.2)  # time that must not be spent in MPI
        after = await all_of(Code.STATUS)
        assert [r.sent for r in before] == [r.sent for r in after]
        await lead(job.ranks, LEAVE, epoch)
        await all_of(Code.ABORT)
        assert job.states() == {State.ATTACHED}
        await all_of(Code.HOLD, expires_s=0.3)
        replies = await all_of(Code.RESUME)
        assert max(r.epoch_stall_longest_ns for r in replies) > 0.15e9
        await all_of(Code.HOLD, expires_s=0.2)
        await asyncio.sleep(0.5)  # longer than the HOLD: nobody says RESUME
        stop.touch()
        assert "OK" in await job.succeed()


async def test_two_processes_claim_one_rank(tmp_path: Path) -> None:
    """Only the process that the kernel names may say hello, and nobody else's rank."""
    server = RankServer(tmp_path / "ranks.sock")
    await server.start()
    client = """
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1]); s.settimeout(10)
s.send(sys.stdin.buffer.read())
print(s.recv(65536)[24:].split(b"\\0")[0].decode())
"""
    for packet in (b"", b"nonsense", encode_commands(1, 1, epoch=0, deadline_s=1)[0]):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", client, str(server.path)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        await asyncio.wait_for(process.communicate(packet), 20)
        assert not server.ranks
    await server.stop()

"""The socket between rank and agent: late, repeated, unknown, malformed and hostile messages."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Launcher, attached

from kawarimi_agent.ranks import RankServer
from kawarimi_ompi.protocol import (
    MAX_MESSAGE,
    Code,
    Command,
    Outcome,
    Reply,
    State,
    encode_command,
)

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]


async def test_late_repeated_and_unknown_commands(launcher: Launcher, program: Program) -> None:
    """Each is answered with what is wrong with it, and changes nothing."""
    stop = launcher.directory / "stop"
    async with launcher.start(program("traffic"), stop, ranks=2) as job:
        await attached(job)
        rank = job.ranks[0]
        codes = {step.name: step.code for step in rank.hello.leave + rank.hello.take}

        async def ask(code: int, **options: object) -> Reply:
            given = {"epoch": rank.epoch, "deadline_s": 5.0, **options}
            return await rank.call(Command(code, **given))  # type: ignore[arg-type]

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
        good = encode_command(7000, Command(Code.STATUS, 0, 5.0))[0]
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
    for packet in (b"", b"nonsense", encode_command(1, Command(Code.STATUS, 0, 1.0))[0]):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", client, str(server.path)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        await asyncio.wait_for(process.communicate(packet), 20)
        assert not server.ranks
    await server.stop()

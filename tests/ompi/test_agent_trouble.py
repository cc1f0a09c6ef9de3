"""Agents that die, come late, or are somebody else's."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import agent_dies_in_a_switch
from harness import LEAVE, TAKE, Job, Launcher, epoch_after, lead

from kawarimi_agent.coordinator import Switch

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]


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
    async def half(job: Job) -> None:
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

    await agent_dies_in_a_switch(launcher, program("traffic"), half, to)


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

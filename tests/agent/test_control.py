"""The agent as a process, asked over its control socket and over ZeroMQ."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from agent_site import Site

from kawarimi_agent.control import CONTROL_SOCKET, ControlChannel
from kawarimi_agent.jobs import JobSummary
from kawarimi_wire.errors import ExecutionFailed, OutcomeUnknown, Slug
from kawarimi_wire.messages import (
    MAX_MESSAGE,
    Answer,
    AskHello,
    AskJobs,
    AskRetransmit,
    Envelope,
    Hello,
)

KAWARIMI = (sys.executable, "-m", "kawarimi_bridge.cli.main")


@asynccontextmanager
async def agent(folder: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `kawarimi agent` until it has said that it is ready; end it by SIGTERM afterwards."""
    told = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(told))
        systemd.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            *(*KAWARIMI, "agent", "--run-directory", str(folder / "run"), *words),
            env={**os.environ, "NOTIFY_SOCKET": str(told)},
        )
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(20):
                assert await loop.sock_recv(systemd, 100) == b"READY=1"
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                assert await process.wait() == 0
        assert await loop.sock_recv(systemd, 100) == b"STOPPING=1"
    told.unlink()
    assert list((folder / "run").iterdir()) == []


async def test_a_process_serves_both_ways(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    words = ["--listen", endpoint, "--guest", "vm1", "--bridges", str(site.settings.bridges)]
    words += ["--secret-key", str(site.settings.secret_key)]
    async with agent(site.folder, *words) as process:
        channel = ControlChannel(site.folder / "run" / CONTROL_SOCKET)
        assert (await channel.ask(AskHello(1), Hello, 5)).pid == process.pid
        assert await channel.ask(AskJobs(), list[JobSummary], 5) == []
        async with site.client(endpoint) as client:
            assert client.hello is not None
            assert client.hello.pid == process.pid
    with pytest.raises(ExecutionFailed) as caught:
        await channel.ask(AskJobs(), list[JobSummary], 5)
    assert caught.value.slug is Slug.AGENT_UNREACHABLE


async def test_bad_keys_leave_nothing_behind(site: Site) -> None:
    secret = site.settings.secret_key
    assert secret is not None
    secret.chmod(0o644)
    process = await asyncio.create_subprocess_exec(
        *(*KAWARIMI, "agent", "--run-directory", str(site.folder / "run")),
        *("--listen", "tcp://127.0.0.1:0", "--secret-key", str(secret)),
        *("--bridges", str(site.settings.bridges)),
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    assert process.returncode == 2
    assert b"chmod 600" in said
    assert list((site.folder / "run").iterdir()) == []


async def test_a_line_that_is_too_long(site: Site) -> None:
    async with agent(site.folder):
        path = site.folder / "run" / CONTROL_SOCKET
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"x" * (MAX_MESSAGE + (1 << 20)))
        answer = msgspec.json.decode(await asyncio.wait_for(reader.readline(), 10), type=Answer)
        assert answer.failure is not None
        assert answer.failure.slug is Slug.BAD_USAGE
        writer.close()
        assert await ControlChannel(path).ask(AskJobs(), list[JobSummary], 5) == []


async def test_an_agent_that_does_not_answer(tmp_path: Path) -> None:
    silent = await asyncio.start_unix_server(lambda r, w: None, tmp_path / "silent")
    with pytest.raises(OutcomeUnknown) as caught:
        await ControlChannel(tmp_path / "silent").ask(AskJobs(), list[JobSummary], 0.2)
    assert caught.value.slug is Slug.AGENT_UNREACHABLE
    silent.close()


@pytest.mark.root
async def test_a_user_may_not_do_what_root_may(site: Site) -> None:
    """The kernel says who asks: nobody's request to change the routes is refused."""
    site.folder.chmod(0o755)
    for parent in site.folder.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    request = msgspec.json.encode(Envelope(1, AskRetransmit((), 0))).decode()
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(sys.argv[2].encode() + b'\\n'); print(s.makefile().readline())"
    )
    async with agent(site.folder):
        asking = await asyncio.create_subprocess_exec(
            *("setpriv", "--reuid", "65534", "--clear-groups", "/usr/bin/python3", "-c", script),
            *(str(site.folder / "run" / CONTROL_SOCKET), request),
            stdout=subprocess.PIPE,
        )
        said, _ = await asyncio.wait_for(asking.communicate(), 20)
    failure = msgspec.json.decode(said, type=Answer).failure
    assert failure is not None
    assert failure.slug is Slug.NOT_ROOT

"""The agent's endpoint and the bridge's client, over ZeroMQ on the loopback."""

from __future__ import annotations

import asyncio
import random
import socket
import time

import msgspec
import pytest
import zmq
import zmq.asyncio
from agent_site import Site

from kawarimi_agent.jobs import JobSummary
from kawarimi_bridge.agents import AgentClient
from kawarimi_wire.errors import (
    ExecutionFailed,
    KawarimiError,
    OutcomeUnknown,
    PreflightRefused,
    Slug,
    UsageError,
)
from kawarimi_wire.messages import (
    MAX_MESSAGE,
    VERSION,
    Answer,
    AskDevices,
    AskHello,
    AskJobs,
    AskRanks,
    Envelope,
    Hello,
)

FUZZ = 4000


async def test_hello_and_a_request(site: Site) -> None:
    async with site.endpoint() as endpoint, site.client(endpoint.listen) as client:
        assert client.hello is not None
        assert (client.hello.guest, client.hello.version) == ("vm1", VERSION)
        assert await client.ask(AskJobs(), list[JobSummary], 5) == []


async def test_errors_travel_whole(site: Site) -> None:
    async with site.endpoint() as endpoint, site.client(endpoint.listen) as client:
        with pytest.raises(UsageError) as caught:
            await client.ask(AskRanks("1.1"), list[object], 5)
        assert caught.value.slug is Slug.UNKNOWN_JOB
        assert caught.value.untouched == "every job"


@pytest.mark.parametrize("case", ["another client key", "another server key", "no keys"])
async def test_wrong_keys(site: Site, case: str) -> None:
    server = site.stranger.public if case == "another server key" else site.agent_key
    keys = site.stranger if case == "another client key" else site.bridge
    async with site.endpoint() as endpoint:
        began = time.monotonic()
        secured = (None, None) if case == "no keys" else (server, keys)
        with pytest.raises(ExecutionFailed) as caught:
            await AgentClient.connect("vm1", endpoint.listen, *secured, 5)
        assert caught.value.slug is Slug.AGENT_KEYS
        assert time.monotonic() - began < 2  # told by the handshake, not by the deadline


async def test_a_key_is_withdrawn_and_admitted_again(site: Site) -> None:
    key = site.folder / "bridge/bridge.key"
    async with site.endpoint() as endpoint:
        text = key.read_text()
        key.write_text("no certificate")
        with pytest.raises(ExecutionFailed, match="does not admit"):
            async with site.client(endpoint.listen):
                pass
        key.write_text(text)
        async with site.client(endpoint.listen) as client:
            assert await client.ask(AskJobs(), list[JobSummary], 5) == []


@pytest.mark.parametrize("case", ["refused", "mute"])
async def test_nobody_there(site: Site, case: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if case == "refused":
            taken.close()
        with pytest.raises(ExecutionFailed) as caught:
            await AgentClient.connect(
                "vm1", f"tcp://127.0.0.1:{port}", site.agent_key, site.bridge, 0.5
            )
    assert not isinstance(caught.value, OutcomeUnknown)
    assert caught.value.slug is Slug.AGENT_UNREACHABLE


async def test_another_guest_answers(site: Site) -> None:
    async with site.endpoint() as endpoint:
        with pytest.raises(PreflightRefused) as caught:
            async with site.client(endpoint.listen, guest="vm2"):
                pass
    assert caught.value.slug is Slug.UNKNOWN_GUEST


async def test_an_agent_of_another_version(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site.endpoint() as endpoint:
        monkeypatch.setattr("kawarimi_bridge.agents.VERSION", VERSION + 1)
        with pytest.raises(PreflightRefused) as caught:
            async with site.client(endpoint.listen):
                pass
    assert caught.value.slug is Slug.AGENT_VERSION
    assert caught.value.facts == {"agent": VERSION, "bridge": VERSION + 1}


class Raw:
    """A bridge that sends what it likes."""

    def __init__(self, site: Site, endpoint: str) -> None:
        self.socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.curve_serverkey = site.agent_key
        self.socket.curve_publickey = site.bridge.public
        self.socket.curve_secretkey = site.bridge.secret
        self.socket.connect(endpoint)

    async def say(self, *frames: bytes) -> Answer:
        await self.socket.send_multipart(frames)
        async with asyncio.timeout(5):
            (frame,) = await self.socket.recv_multipart()
        return msgspec.json.decode(frame, type=Answer)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def encoded(number: int, body: object, **more: object) -> bytes:
    return msgspec.json.encode(Envelope(number, body, **more))  # type: ignore[arg-type]


async def test_the_first_request_is_hello(site: Site) -> None:
    async with site.endpoint() as endpoint:
        with Raw(site, endpoint.listen) as raw:
            for body in (AskJobs(), AskHello(VERSION + 1), AskJobs()):
                answer = await raw.say(encoded(7, body))
                assert answer.number == 7
                assert answer.failure is not None
                assert answer.failure.slug is Slug.AGENT_VERSION
            newer = b'{"number":8,"body":{"ask":"hello","version":9,"more":1},"also":2}'
            answer = await raw.say(newer)
            assert answer.failure is not None
            assert answer.failure.slug is Slug.AGENT_VERSION
            assert (await raw.say(encoded(9, AskHello(VERSION)))).result(Hello).guest == "vm1"
            assert (await raw.say(encoded(10, AskJobs()))).result(list[JobSummary]) == []


async def test_what_is_no_request_is_answered(site: Site) -> None:
    bad = [
        b"",
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        b'{"number":5}',
        b'{"number":5,"body":{"ask":"everything"}}',
        b'{"number":5,"body":{"ask":"status","job":"1.1","deadline_s":-1}}',
        b'{"number":5,"body":{"ask":"status","job":"1.1","deadline_s":1e300}}',
        b'{"number":5,"body":{"ask":"jobs","too":"much"}}',
    ]
    async with site.endpoint() as endpoint:
        with Raw(site, endpoint.listen) as raw:
            await raw.say(encoded(1, AskHello(VERSION)))
            for message in bad:
                answer = await raw.say(message)
                assert answer.failure is not None
                assert answer.failure.slug is Slug.BAD_USAGE
                assert answer.number == (5 if b'"number":5' in message else 0)
            assert (await raw.say(b"", encoded(6, AskJobs()))).failure is not None
            call = {"ask": "call", "job": "1.1", "vpid": 0, "code": 1, "epoch": 1}
            call |= {"deadline_s": 1, "flags": 0, "blobs": "nonsense", "expires_s": None}
            message = msgspec.json.encode({"number": 5, "body": call})
            assert "not a command" in (await raw.say(message)).failure.what  # type: ignore[union-attr]


async def test_thousands_of_malformed_messages(site: Site) -> None:
    """Requests with bytes changed, cut, doubled: each is answered, and none ends the agent."""
    dice = random.Random(4)
    seeds = [
        encoded(2, AskJobs()),
        encoded(3, AskRanks("1.1"), operation="op", phase="drain", attempt=2),
        encoded(4, AskHello(VERSION)),
        bytes(range(256)),
    ]
    async with site.endpoint() as endpoint:
        with Raw(site, endpoint.listen) as raw:
            await raw.say(encoded(1, AskHello(VERSION)))
            for _ in range(FUZZ):
                message = bytearray(dice.choice(seeds))
                for _ in range(dice.randint(1, 4)):
                    at = dice.randrange(len(message) + 1)
                    kind = dice.randrange(3)
                    if kind == 0:
                        message[at : at + 1] = bytes([dice.randrange(256)])
                    elif kind == 1:
                        del message[at : at + dice.randint(1, 20)]
                    else:
                        message[at:at] = message[at : at + dice.randint(1, 20)]
                await raw.say(bytes(message))
            assert (await raw.say(encoded(9, AskJobs()))).result(list[JobSummary]) == []


async def test_an_oversized_message_ends_its_connection_only(site: Site) -> None:
    async with site.endpoint() as endpoint, site.client(endpoint.listen) as client:
        with Raw(site, endpoint.listen) as raw:
            await raw.say(encoded(1, AskHello(VERSION)))
            await raw.socket.send(b"x" * (MAX_MESSAGE + 1))
        assert await client.ask(AskJobs(), list[JobSummary], 5) == []


async def test_requests_run_side_by_side(site: Site) -> None:
    both = asyncio.Barrier(2)

    async def meet(request: AskDevices, uid: int) -> int:
        await both.wait()
        return uid

    site.desk.add(AskDevices, meet)
    async with site.endpoint() as endpoint, site.client(endpoint.listen) as client:
        async with asyncio.timeout(5):
            uids = await asyncio.gather(*(client.ask(AskDevices(), int, 5) for _ in range(2)))
    assert uids == [0, 0]


async def test_no_answer_in_time(site: Site) -> None:
    async def never(request: AskDevices, uid: int) -> None:
        await asyncio.Event().wait()

    site.desk.add(AskDevices, never)
    async with site.endpoint() as endpoint, site.client(endpoint.listen) as client:
        with pytest.raises(OutcomeUnknown) as caught:
            await client.ask(AskDevices(), list[object], 0.2)
        assert caught.value.slug is Slug.AGENT_UNREACHABLE
        assert await client.ask(AskJobs(), list[JobSummary], 5) == []


async def test_the_agent_gives_up_what_takes_too_long(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(request: AskDevices, uid: int) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("kawarimi_agent.desk.LONGEST_S", 0.2)
    site.desk.add(AskDevices, never)
    async with site.endpoint() as endpoint, site.client(endpoint.listen) as client:
        with pytest.raises(OutcomeUnknown) as caught:
            await client.ask(AskDevices(), list[object], 5)
        assert caught.value.slug is Slug.INTERNAL


async def test_a_defect_is_an_answer_too(site: Site) -> None:
    async def fail(request: AskDevices, uid: int) -> object:
        return 1 / 0

    site.desk.add(AskDevices, fail)
    async with site.endpoint() as endpoint, site.client(endpoint.listen) as client:
        with pytest.raises(ExecutionFailed, match="ZeroDivisionError") as caught:
            await client.ask(AskDevices(), list[object], 5)
        assert caught.value.slug is Slug.INTERNAL


async def test_the_agent_restarts(site: Site) -> None:
    """What is under way is of unknown outcome; what comes next says hello again by itself."""
    reached = asyncio.Event()

    async def never(request: AskDevices, uid: int) -> None:
        reached.set()
        await asyncio.Event().wait()

    site.desk.add(AskDevices, never)
    async with site.endpoint() as first:
        place = first.listen
        client = await AgentClient.connect("vm1", place, site.agent_key, site.bridge, 5)
        under_way = asyncio.create_task(client.ask(AskDevices(), list[object], 30))
        await reached.wait()
    with pytest.raises(OutcomeUnknown) as unknown:
        await asyncio.wait_for(under_way, 5)
    assert unknown.value.slug is Slug.AGENT_UNREACHABLE
    with pytest.raises(ExecutionFailed) as unsent:
        await client.ask(AskJobs(), list[JobSummary], 0.3)
    assert not isinstance(unsent.value, OutcomeUnknown)
    async with site.endpoint(listen=place):
        assert await client.ask(AskJobs(), list[JobSummary], 5) == []
    async with site.endpoint(listen=place, guest="vm1", secret_key=None, insecure=True):
        with pytest.raises(KawarimiError) as refused:
            await client.ask(AskJobs(), list[JobSummary], 5)
        assert refused.value.slug is Slug.AGENT_KEYS
    await client.close()


async def test_insecure_admits_everybody(site: Site) -> None:
    async with site.endpoint(insecure=True) as endpoint:
        client = await AgentClient.connect("vm1", endpoint.listen, None, None, 5)
        assert await client.ask(AskJobs(), list[JobSummary], 5) == []
        await client.close()


async def test_the_address_is_taken(site: Site) -> None:
    async with site.endpoint() as first:
        with pytest.raises(ExecutionFailed) as caught:
            async with site.endpoint(listen=first.listen):
                pass
    assert caught.value.slug is Slug.AGENT_CANNOT_LISTEN

"""The guest agent in real guests: devices as they come and go, who holds them, a real message."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kawarimi_bridge.agents import AgentClient
from kawarimi_testbed.agents import KEYS, context_in, endpoint
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.testbed import Testbed
from kawarimi_wire.errors import ExecutionFailed, OutcomeUnknown, PreflightRefused, Slug, UsageError
from kawarimi_wire.keys import generate, load_pair, load_public
from kawarimi_wire.messages import (
    VERSION,
    AskDevice,
    AskDevices,
    AskProbeClose,
    AskProbeOpen,
    AskProbeRun,
    AskReleased,
    AskRetransmit,
    AskTraffic,
    ProbeEnd,
    ProbeResult,
    Released,
    Traffic,
    VerbsDevice,
)

IDLE_S = 10
MOST_MEMORY_KB = 40_000
PORT = 9999
ANSWER_S = 60.0
"""An emulated guest on a busy machine: no answer takes that long."""


@pytest.fixture(scope="module")
def testbed(at_home: Testbed) -> Testbed:
    return at_home


@pytest.fixture(scope="module")
def vm1(testbed: Testbed) -> Guest:
    return testbed.guest("vm1")


@pytest.fixture(scope="module")
def vm2(testbed: Testbed) -> Guest:
    return testbed.guest("vm2")


async def devices(guest: Guest) -> list[VerbsDevice]:
    return await (await guest.agent()).ask(AskDevices(), list[VerbsDevice], ANSWER_S)


async def device(guest: Guest, deadline_s: float = 30.0, **changes: str) -> VerbsDevice:
    topology = guest.topology
    wanted = {
        "mac": topology.hca_mac(guest.host, guest.name),
        "address": topology.hca_prefix(guest.host, guest.name) or "",
        **changes,
    }
    request = AskDevice(deadline_s=deadline_s, **wanted)
    return await (await guest.agent()).ask(request, VerbsDevice, ANSWER_S)


async def released(guest: Guest, deadline_s: float = 10.0) -> Released:
    return await (await guest.agent()).ask(AskReleased("rxe0", deadline_s), Released, ANSWER_S)


async def open_probe(guest: Guest, lifetime_s: float = 60.0) -> ProbeEnd:
    request = AskProbeOpen("rxe0", guest.hca_address or "", lifetime_s)
    return await (await guest.agent()).ask(request, ProbeEnd, ANSWER_S)


async def run_probe(guest: Guest, own: ProbeEnd, peer: ProbeEnd, s: float = 10.0) -> ProbeResult:
    request = AskProbeRun(own.probe, peer, s)
    return await (await guest.agent()).ask(request, ProbeResult, ANSWER_S)


@contextlib.asynccontextmanager
async def foreign(guest: Guest, command: str, until: str) -> AsyncIterator[int]:
    """Run a program in the guest until the context ends; its process id, once a test holds."""
    await guest.run(f"({command}) >/tmp/foreign.log 2>&1 & echo $! >/run/foreign")
    pid = int((await guest.run("cat /run/foreign")).stdout)
    try:
        script = f"until {until.format(pid=pid)}; do sleep 0.05; done"
        await guest.run(script, deadline_s=20)
        yield pid
    finally:
        await guest.run(f"kill -9 {pid}; while [ -d /proc/{pid} ]; do sleep 0.05; done")


OPEN = "ls -l /proc/{pid}/fd | grep -q uverbs0"


async def figures(guest: Guest, pid: int) -> tuple[int, int, int]:
    """Return a process's resident KiB, its CPU ticks, and its threads' context switches."""
    script = (
        f"cd /proc/{pid}; grep VmRSS status; cut -d' ' -f14,15 stat;"
        " cat task/*/status | grep ctxt_switches"
    )
    memory, ticks, *switches = (await guest.run(script)).stdout.splitlines()
    return (
        int(memory.split()[1]),
        sum(map(int, ticks.split())),
        sum(int(line.split()[1]) for line in switches),
    )


async def test_small_and_idle(vm1: Guest, figure) -> None:
    """Asked several things before, then nothing: it uses no processor, and little memory."""
    agent = await vm1.agent()
    assert agent.hello is not None
    assert (agent.hello.guest, agent.hello.version) == ("vm1", VERSION)
    await devices(vm1)
    _, ticks, switches = await figures(vm1, agent.hello.pid)
    await asyncio.sleep(IDLE_S)
    memory, ticks_after, switches_after = await figures(vm1, agent.hello.pid)
    figure(
        f"agent: {memory} KiB resident; in {IDLE_S} idle seconds {ticks_after - ticks} ticks of "
        f"processor time, {switches_after - switches} context switches"
    )
    assert memory < MOST_MEMORY_KB
    assert ticks_after == ticks
    assert switches_after == switches


async def test_devices(vm1: Guest) -> None:
    (found,) = await devices(vm1)
    assert (found.name, found.interface, found.pci) == ("rxe0", "eth1", "0000:01:00.0")
    assert found.mac == vm1.topology.hca_mac("hosta", "vm1")
    assert (found.port.state, found.port.link) == ("ACTIVE", "Ethernet")
    assert vm1.topology.hca_prefix("hosta", "vm1") in found.addresses
    assert "sent_pkts" in found.counters


async def test_a_message_crosses_both_ways(vm1: Guest, vm2: Guest, figure) -> None:
    ends = await asyncio.gather(open_probe(vm1), open_probe(vm2))
    for own, peer in ((0, 1), (1, 0)):
        assert ends[own].qpn != 0
        assert ends[own].gid != ends[peer].gid
    before = (await devices(vm1))[0].counters
    first = asyncio.create_task(run_probe(vm1, *ends))
    await asyncio.sleep(0.3)  # the other end is late: what was sent to it is sent again
    results = await asyncio.gather(first, run_probe(vm2, ends[1], ends[0]))
    figure(f"probe: {results[0].took_s * 1e3:.0f} and {results[1].took_s * 1e3:.0f} ms")
    after = (await devices(vm1))[0].counters
    assert after["sent_pkts"] > before["sent_pkts"]
    assert after["rcvd_pkts"] > before["rcvd_pkts"]
    assert await run_probe(vm1, *ends) == results[0]  # asked again: it is done already
    with pytest.raises(ExecutionFailed) as held:
        await released(vm1, 0.1)
    assert held.value.facts["holders"][0]["process"] == "kawarimi-probe"
    for guest, end in zip((vm1, vm2), ends, strict=True):
        for _ in range(2):
            await (await guest.agent()).ask(AskProbeClose(end.probe), type(None), ANSWER_S)
        await released(guest, 0)
    with pytest.raises(UsageError) as unknown:
        await run_probe(vm1, *ends)
    assert unknown.value.slug is Slug.UNKNOWN_PROBE


async def test_a_probe_that_nobody_answers(vm1: Guest) -> None:
    own = await open_probe(vm1, lifetime_s=5)
    nobody = ProbeEnd("", "0000:0000:0000:0000:0000:ffff:0a43:01fe", 0, 17, 5, 4096)
    with pytest.raises(ExecutionFailed) as caught:
        await run_probe(vm1, own, nobody, 1)
    assert caught.value.slug is Slug.FABRIC_UNREACHABLE
    await released(vm1, 20)  # its lifetime is over, and nobody has closed it


@pytest.mark.parametrize("what", ["device", "address", "nonsense"])
async def test_a_probe_of_what_is_not_there(vm1: Guest, what: str) -> None:
    agent = await vm1.agent()
    request = AskProbeOpen(
        "rxe7" if what == "device" else "rxe0",
        {"address": "192.0.2.1", "nonsense": "x"}.get(what, ""),
        5,
    )
    with pytest.raises((UsageError, ExecutionFailed)) as caught:
        await agent.ask(request, ProbeEnd, ANSWER_S)
    slugs = {"device": Slug.UNKNOWN_DEVICE, "address": Slug.HCA_NOT_READY}
    assert caught.value.slug is slugs.get(what, Slug.BAD_USAGE)


async def test_a_foreign_process_holds_the_device(vm1: Guest) -> None:
    assert (await released(vm1, 0)).waited_s < 5
    async with foreign(vm1, "exec ibv_rc_pingpong -d rxe0 -g 1", OPEN) as pid:
        with pytest.raises(ExecutionFailed) as caught:
            await released(vm1, 0.2)
        assert caught.value.slug is Slug.DEVICE_HELD
        assert f"ibv_rc_pingpong, pid {pid}, holds uverbs0" in caught.value.what
        (holder,) = caught.value.facts["holders"]
        assert (holder["pid"], holder["process"]) == (pid, "ibv_rc_pingpong")
        assert "1 queue pair" in holder["holds"]
        waiting = asyncio.create_task(released(vm1, 30))
        await asyncio.sleep(0.5)
        assert not waiting.done()
    assert (await waiting).waited_s > 0.4


async def test_a_mapping_alone_holds_the_device(vm1: Guest) -> None:
    """The descriptor is closed, a completion queue's memory is still mapped."""
    program = (
        "import os, time; from pyverbs.device import Context; from pyverbs.cq import CQ\n"
        "c = Context(name='rxe0'); q = CQ(c, 16)\n"
        "for f in os.listdir('/proc/self/fd'):\n"
        "    try: path = os.readlink('/proc/self/fd/' + f)\n"
        "    except OSError: continue\n"
        "    if 'uverbs' in path: os.close(int(f))\n"
        "open('/run/closed', 'w'); time.sleep(60)"
    )
    script = f'exec python3 -c "{program}"'
    async with foreign(vm1, script, "[ -e /run/closed ]") as pid:
        assert (
            await vm1.run(f"ls -l /proc/{pid}/fd | grep -c uverbs", check=False)
        ).stdout == "0\n"
        with pytest.raises(ExecutionFailed) as caught:
            await released(vm1, 0.2)
        assert f"pid {pid}, holds a mapping of uverbs0" in caught.value.what
    await released(vm1, 5)


async def test_a_port_goes_down_and_comes_back(vm1: Guest) -> None:
    await vm1.run("ip link set eth1 down")
    with pytest.raises(ExecutionFailed) as caught:
        await device(vm1, 0.5, address="")
    assert caught.value.slug is Slug.HCA_NOT_READY
    assert "eth1 has no link" in caught.value.what
    assert caught.value.facts["port"] == "DOWN"
    waiting = asyncio.create_task(device(vm1, 20))  # told the address, it also sets the link up
    assert (await waiting).port.state == "ACTIVE"


async def test_bad_addresses(vm1: Guest) -> None:
    for address in ("10.67.1.11", "nonsense/24", "10.67.1.11/99"):
        with pytest.raises(UsageError):
            await device(vm1, 1, address=address)


async def test_retransmission_follows_the_route(vm1: Guest, vm2: Guest, figure) -> None:
    """A connection that exists already comes down to the route's least time."""
    echo = (
        f"import socket; s = socket.create_server(('', {PORT})); open('/run/echo', 'w')\n"
        "c, _ = s.accept()\nwhile d := c.recv(100): c.sendall(d)"
    )
    ping = (
        "import socket, struct, time\n"
        f"s = socket.create_connection(('{vm2.ethernet_address}', {PORT}))\n"
        "while True:\n"
        "    s.sendall(bytes(64)); s.recv(100); time.sleep(0.005)\n"
        "    rto = struct.unpack_from('I', s.getsockopt(socket.IPPROTO_TCP, 11, 104), 8)[0]\n"
        "    open('/run/rto.new', 'w').write(str(rto))\n"
        "    import os; os.rename('/run/rto.new', '/run/rto')"
    )

    async def until(condition: str) -> None:
        script = f"until [ $(cat /run/rto || echo 0) {condition} ]; do sleep 0.1; done"
        await vm1.run(f"rm -f /run/rto; {script} 2>/dev/null", deadline_s=20)

    async def set_least(seconds: float) -> str:
        request = AskRetransmit((vm2.ethernet_address, vm1.ethernet_address), seconds)
        for _ in range(2):
            await (await vm1.agent()).ask(request, type(None), ANSWER_S)
        return (await vm1.run("ip route show proto 117")).stdout

    async with (
        foreign(vm2, f'exec python3 -c "{echo}"', "[ -e /run/echo ]"),
        foreign(vm1, f'exec python3 -c "{ping}"', "[ -e /run/rto ]"),
    ):
        await until("-ge 200000")
        routes = await set_least(0.01)
        assert routes.count("\n") == 1
        assert "rto_min lock 10ms" in routes
        await until("-lt 100000")
        figure(f"time-out {(await vm1.run('cat /run/rto')).stdout} µs with a least one of 10 ms")
        assert "rto_min lock 20ms" in await set_least(0.02)
        assert await set_least(0) == ""


async def test_traffic(vm1: Guest, vm2: Guest) -> None:
    agent = await vm1.agent()
    size = 300_000

    sink = (
        f"import socket; s = socket.create_server(('', {PORT})); open('/run/sink', 'w')\n"
        "while True:\n    c, _ = s.accept()\n    while c.recv(65536): pass\n    c.close()"
    )

    async def grown(address: str) -> Traffic:
        """Send something over TCP, and return by how much the counts have grown."""
        before = await agent.ask(AskTraffic(), Traffic, ANSWER_S)
        source = (
            f"import socket; s = socket.create_connection(('{address}', {PORT}))\n"
            f"s.sendall(bytes({size})); s.shutdown(socket.SHUT_WR); s.recv(1)"
        )
        await vm1.run(["python3", "-c", source])
        after = await agent.ask(AskTraffic(), Traffic, ANSWER_S)
        return Traffic(after.ethernet - before.ethernet, after.fabric - before.fabric)

    async with foreign(vm2, f'exec python3 -c "{sink}"', "[ -e /run/sink ]"):
        over_ethernet = await grown(vm2.ethernet_address)
        over_fabric = await grown(vm2.hca_address or "")
    assert over_ethernet.ethernet > size > over_ethernet.fabric
    assert over_fabric.fabric > size > over_fabric.ethernet
    began = time.monotonic()
    for _ in range(10):
        await agent.ask(AskTraffic(), Traffic, ANSWER_S)
    assert time.monotonic() - began < 10


async def test_other_keys_and_another_version(
    testbed: Testbed, vm1: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_in(testbed.topology.switch_namespace)
    place = endpoint(testbed.topology, "vm1")
    keys = testbed.keeper.folder / KEYS
    server, ours = load_public(keys / "vm1.key"), load_pair(keys / "harness.key_secret")
    generate(tmp_path, "other")
    others = load_pair(tmp_path / "other.key_secret")
    for server_key, pair in ((server, others), (others.public, ours)):
        with pytest.raises(ExecutionFailed) as caught:
            await AgentClient.connect("vm1", place, server_key, pair, 30, context=context)
        assert caught.value.slug is Slug.AGENT_KEYS
    monkeypatch.setattr("kawarimi_bridge.agents.VERSION", VERSION + 1)
    with pytest.raises(PreflightRefused) as refused:
        await AgentClient.connect("vm1", place, server, ours, 30, context=context)
    assert refused.value.slug is Slug.AGENT_VERSION
    context.term()


async def test_the_agent_is_killed(vm1: Guest) -> None:
    """Its probe dies with it, its routes go with its successor, and the connection comes back."""
    agent = await vm1.agent()
    assert agent.hello is not None
    killed = agent.hello.pid
    await open_probe(vm1)
    await agent.ask(AskRetransmit(("10.66.0.12",), 0.01), type(None), ANSWER_S)
    await vm1.run(f"kill -9 {killed}")
    with contextlib.suppress(OutcomeUnknown):  # it is sent, or not, as the connection breaks
        await released(vm1, 5)
    await released(vm1, 5)
    assert agent.hello.pid != killed
    assert (await vm1.run("ip route show proto 117")).stdout == ""
    assert (await vm1.run("cat /proc/[0-9]*/comm | grep kawarimi-probe", check=False)).stdout == ""


async def test_an_hca_comes_after_a_move(testbed: Testbed, vm1: Guest, figure) -> None:
    """The connection lives through the migration; the new HCA is announced by the kernel."""
    agent = await vm1.agent()
    namespace = testbed.topology.switch_namespace

    async def connections() -> str:
        asking = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", namespace, "ss", "-Htn", "state", "established"),
            *("dst", vm1.ethernet_address, "dport", "7117"),
            stdout=asyncio.subprocess.PIPE,
        )
        return " ".join((await asking.communicate())[0].decode().split()[2:])

    before = await connections()
    await vm1.unplug()
    assert await devices(vm1) == []
    assert (await released(vm1, 0)).waited_s < 5  # nothing there to hold
    with pytest.raises(ExecutionFailed, match="no device with the MAC"):
        await device(vm1, 0.2)
    under_way = asyncio.create_task(
        agent.ask(AskDevice("", "10.67.2.11/24", 60, not_=("mlx5_0",)), VerbsDevice, 70)
    )
    await vm1.migrate("hostc")
    assert not under_way.done()
    assert await connections() == before
    plugged = time.monotonic()
    await vm1.plug()
    found = await under_way
    figure(f"plug to usable, as the agent sees it: {time.monotonic() - plugged:.2f} s")
    assert found.mac == vm1.topology.hca_mac("hostc", "vm1")
    assert "10.67.2.11/24" in found.addresses
    assert await connections() == before

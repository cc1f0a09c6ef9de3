"""What preflight refuses: with a slug and what to do, and nothing of any guest was touched."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from kawarimi_bridge.migration_parameters import MigrationParameters
from kawarimi_testbed.agents import endpoint
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.qemu import memory_kib
from kawarimi_testbed.testbed import Testbed
from kawarimi_wire.errors import ExitCode
from kawarimi_wire.keys import PUBLIC, SECRET, generate, load_public
from kawarimi_wire.messages import VERSION

USAGE, REFUSED = ExitCode.USAGE, ExitCode.REFUSED
MOVE = ("migrate", "vm1", "--to", "hostb")
ANOTHER_PORT = 7118


@pytest.fixture(scope="module")
def testbed(at_home: Testbed) -> Testbed:
    return at_home


@pytest.mark.parametrize(
    ("slug", "words"),
    [
        ("unknown-guest", ("migrate", "vm9", "--to", "hostb")),
        ("unknown-host", ("migrate", "vm1", "--to", "nowhere")),
        ("bad-usage", ("migrate", "vm1")),
        ("bad-usage", ("migrate", "vm1=hostb", "vm1=hostc")),
        ("bad-usage", (*MOVE, "--deadline", "breakfast=5")),
        ("bad-configuration", (*MOVE, "--config", "/nonexistent")),
        ("unknown-operation", ("report", "yesterday")),
    ],
)
async def test_bad_usage(operator, slug, words):
    await operator.refused(USAGE, slug, *words)


WRONG = {
    "no such driver": ('driver = "virtio-net-pci"', 'driver = "infinihost"', "hca-unusable"),
    "no such property": ('"netdev" =', '"netdev0" =', "hca-unusable"),
    "no such slot": ('slot = "hca-port"', 'slot = "hca-door"', "hca-slot-missing"),
    "no QMP socket": ("/bridge.sock", "/bridge.socket", "qmp-unreachable"),
    "nobody listens": (":7117", ":7999", "agent-unreachable"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_wrong_configuration(testbed, operator, tmp_path, what):
    old, new, slug = WRONG[what]
    config = operator.variant(tmp_path / "config.toml", old.replace('"netdev" =', "netdev ="), new)
    await operator.refused(
        REFUSED, slug, "migrate", "vm1", "--to", "hostc", "--config", str(config)
    )


async def test_a_device_that_is_not_bound_to_vfio(operator, tmp_path):
    text = operator.config.replace('driver = "virtio-net-pci"', 'driver = "vfio-pci"')
    lines = [
        'properties = { host = "0000:ff:1f.7" }' if line.startswith("properties") else line
        for line in text.splitlines()
    ]
    (tmp_path / "config.toml").write_text("\n".join(lines))
    words = ("migrate", "vm1", "--to", "hostc", "--config", str(tmp_path / "config.toml"))
    error = await operator.refused(REFUSED, "hca-unusable", *words)
    assert "0000:ff:1f.7" in error["what"]


async def test_wrong_keys(testbed, operator, tmp_path):
    """Each side knows the other by its key, and says so in time."""
    generate(tmp_path, "other")
    theirs = load_public(testbed.keeper.folder / "keys" / f"vm1{PUBLIC}").decode()
    other = load_public(tmp_path / f"other{PUBLIC}").decode()
    config = operator.variant(tmp_path / "agent.toml", theirs, other)
    await operator.refused(REFUSED, "agent-keys", *MOVE, "--config", str(config))
    ours = str(testbed.keeper.folder / "keys" / f"harness{SECRET}")
    config = operator.variant(tmp_path / "bridge.toml", ours, str(tmp_path / f"other{SECRET}"))
    await operator.refused(REFUSED, "agent-keys", *MOVE, "--config", str(config))


@contextlib.asynccontextmanager
async def another_agent(guest: Guest, version: int) -> AsyncIterator[str]:
    """Run an agent of another version beside the guest's own; yield its endpoint."""
    place = endpoint(guest.topology, guest.name).replace(":7117", f":{ANOTHER_PORT}")
    code = (
        f"import kawarimi_wire.messages as m; m.VERSION = {version};"
        " from kawarimi_bridge.cli.main import main; main()"
    )
    words = (
        f"agent --config /opt/kawarimi/agent/{guest.name}.toml --listen {place}"
        " --run-directory /run/another"
    )
    start = f"PYTHONPATH=/opt/kawarimi/lib setsid python3 -c '{code}' {words}"
    await guest.run(f"{start} >/tmp/another.log 2>&1 </dev/null & echo $! >/run/another.pid")
    try:
        await guest.run(
            f"until ss -Hltn | grep -q :{ANOTHER_PORT}; do sleep 0.1; done", deadline_s=60
        )
        yield place
    finally:
        await guest.run("kill $(cat /run/another.pid)", check=False)


async def test_an_agent_of_another_version(testbed, operator, tmp_path):
    vm1 = testbed.guest("vm1")
    async with another_agent(vm1, VERSION + 1) as place:
        ours = endpoint(testbed.topology, "vm1")
        config = operator.variant(tmp_path / "config.toml", ours, place)
        await operator.refused(REFUSED, "agent-version", *MOVE, "--config", str(config))


async def test_a_destination_without_memory(testbed, operator, tmp_path):
    """A host whose /proc/meminfo says so: another file is mounted over it, as lxcfs does."""
    meminfo = tmp_path / "meminfo"
    script = f'mount --bind {meminfo} /proc/meminfo && exec "$@"'
    run = json.dumps(["unshare", "--mount", "sh", "-c", script, "sh"])
    old = "[hosts.hostb]\n"
    config = operator.variant(tmp_path / "config.toml", old, f"{old}run = {run}\n")

    move = ("vm1", "vm2", "--to", "hostb", "--config", str(config))
    one = memory_kib(testbed.topology.guest_memory_mib)

    async def refused(free_kib: int) -> str:
        leave(free_kib)
        error = await operator.refused(REFUSED, "destination-too-small", "migrate", *move)
        return error["what"]

    def leave(free_kib: int) -> None:
        meminfo.write_text(f"MemTotal: 9000000 kB\nMemFree: 9 kB\nMemAvailable: {free_kib} kB\n")

    assert "97 MiB" in await refused(100000)
    assert "vm1 and vm2 have" in await refused(one + one // 2)  # room for either, not for both
    leave(2 * one)
    assert (await operator.run("check", *move)).exit_code == ExitCode.COMPLETED


async def settle(guest: Guest) -> None:
    """See a migration end that nobody follows: `Operator.run` connects to all monitors anew."""
    await guest.monitor.execute("migrate_cancel")
    async with asyncio.timeout(30):
        ended = ("cancelled", "failed")
        while (await guest.monitor.execute("query-migrate"))["status"] not in ended:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_guest_that_migrates_already(testbed, operator):
    vm1 = testbed.guest("vm1")
    await vm1.unplug()
    slow = MigrationParameters(bandwidth=2**20)
    async with vm1.monitor.watch(["MIGRATION"]) as watch:
        moving = asyncio.create_task(vm1.migrate("hostd", slow))
        try:
            assert await watch.wait(30, lambda event: event["data"]["status"] == "active")
            await operator.refused(REFUSED, "migration-busy", *MOVE)
        finally:
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)
            await settle(vm1)
            await vm1.plug()
            await vm1.address_hca()


async def test_a_qemu_that_somebody_left(testbed, operator):
    """It is refused, not reused, and `cleanup` ends it."""
    left = await testbed.guest("vm1").spawn_destination("hostb")
    await left.close()
    await operator.refused(REFUSED, "migration-busy", *MOVE)
    cleaned = await operator.run("cleanup", "--json")
    ended = [{"guest": "vm1", "host": "hostb", "status": "inmigrate"}]
    assert json.loads(cleaned.stdout)["ended"] == ended


async def test_a_foreign_process_holds_the_device(testbed, operator):
    vm1 = testbed.guest("vm1")
    await vm1.run("ibv_rc_pingpong -d rxe0 -g 1 >/dev/null 2>&1 & echo $! >/run/pingpong")
    pid = int((await vm1.run("cat /run/pingpong")).stdout)
    try:
        held = f"until ls -l /proc/{pid}/fd | grep -q uverbs; do sleep 0.05; done"
        await vm1.run(held, deadline_s=20)
        error = await operator.refused(REFUSED, "device-held", *MOVE)
        assert f"ibv_rc_pingpong, pid {pid}" in error["what"]
    finally:
        await vm1.run(f"kill {pid}")

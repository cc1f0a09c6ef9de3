"""Guests move between hosts under a running MPI job, and stay where they are if that fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kawarimi_bridge import hca, migration
from kawarimi_bridge.migration_parameters import MigrationParameters
from kawarimi_testbed import qemu
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.keeper import Kill
from kawarimi_testbed.mpi import mpirun
from kawarimi_wire.errors import ExecutionFailed, PreflightRefused, Slug

MOVES = ["hostb", "hosta"] * 5
MARKER = "/run/ring-started"


async def established(guest: Guest) -> set[str]:
    """Return the job's TCP connections, as `local peer` pairs, the harness's own left out."""
    shown = await guest.run("ss -Htnp state established")
    lines = [line.split() for line in shown.stdout.splitlines()]
    return {
        f"{words[2]} {words[3]}"
        for words in lines
        if any(program in words[-1] for program in ('"ring"', '"mpirun"', '"orted"'))
    }


async def test_five_times_there_and_back_under_a_tcp_job(vm1, testbed, figure):
    await vm1.unplug()
    seconds = 250
    command = ["ring", str(seconds), "16384", MARKER]
    words = mpirun(testbed.topology, ["vm1", "vm2"], command, btl="tcp")
    job = asyncio.create_task(vm1.run(words, deadline_s=seconds + 30))
    await vm1.run(f"until [ -e {MARKER} ]; do sleep 0.05; done", deadline_s=60)
    before = await established(vm1)
    moves = []
    for host in MOVES:
        moves.append(await vm1.migrate(host))
        assert vm1.host == host
        assert not job.done(), "the job must still be running when the guest has moved"
    after = await established(vm1)
    await vm1.run(["rm", MARKER])  # which ends the ring, however long the moves have taken
    ended = await job
    report = json.loads(ended.stdout)
    assert report["errors"] == 0
    # mpirun's daemon connection, and the one that the ranks exchange their blocks on.
    assert len(before) >= 2
    assert after == before
    # QEMU says "completed" before it has computed these.
    assert all(move.total_s > 0 and move.downtime_s > 0 for move in moves)
    total = sorted(move.total_s for move in moves)
    down = sorted(move.downtime_s for move in moves)
    figure(
        f"{len(moves)} migrations under a TCP job: total {total[0]:.2f}/{total[5]:.2f}/"
        f"{total[-1]:.2f} s, downtime {down[0]:.3f}/{down[5]:.3f}/{down[-1]:.3f} s "
        f"(min/median/max); longest stall {report['longest_s']:.3f} s "
        f"in {report['iterations']} iterations"
    )


ENDLESS = {"bandwidth": 64 * 2**20, "downtime_limit_s": 0.005}
"""The memory program writes faster than this sends: QEMU does not come to an end by itself."""


@contextlib.asynccontextmanager
async def writing(guest: Guest) -> AsyncIterator[None]:
    """Keep a guest's CPU and memory busy; every write must be there at the end."""
    program = asyncio.create_task(guest.run(["memory", "2000", MARKER], deadline_s=120))
    await guest.run(f"until [ -e {MARKER} ]; do sleep 0.05; done", deadline_s=30)
    yield
    await guest.run(["rm", MARKER])
    assert json.loads((await program).stdout)["lost"] == 0


async def test_no_write_is_lost_however_many_passes(vm1):
    """A program that never lets go of the CPU, and a migration that takes its memory many times."""
    await vm1.unplug()
    async with writing(vm1):
        source = vm1.monitor
        moving = asyncio.create_task(vm1.migrate("hostb", MigrationParameters(**ENDLESS)))
        async with source.watch(["MIGRATION_PASS"]) as events:
            assert await events.wait(60, lambda event: event["data"]["pass"] >= 8)
        await source.execute("migrate-set-parameters", {"downtime-limit": 2000})
        await moving


async def test_postcopy_ends_what_precopy_never_would(vm1):
    await vm1.unplug()
    async with writing(vm1):
        moved = await vm1.migrate("hostb", MigrationParameters(**ENDLESS, postcopy=True))
    assert vm1.host == "hostb"
    assert moved.transferred > 0
    # What a migration was told does not stay: the next one is precopy, and comes to no end.
    with pytest.raises(ExecutionFailed) as caught:
        async with writing(vm1):
            await vm1.migrate("hosta", MigrationParameters(**ENDLESS), deadline_s=10)
    assert caught.value.slug is Slug.MIGRATION_TIMEOUT
    await vm1.run(["rm", MARKER])


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder of TLS certificates as QEMU wants them, of the destination's address."""
    address = "10.66.0.102"

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    new = ("-newkey", "rsa:2048", "-nodes", "-subj", "/CN=kawarimi")
    openssl("req", "-x509", *new, "-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-days", "2")
    for name in ("server", "client"):
        files = ("-keyout", f"{name}-key.pem", "-out", f"{name}.csr")
        openssl("req", *new, *files, "-addext", f"subjectAltName=IP:{address}")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}-cert.pem", "-days", "2"),
            *("-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-copy_extensions", "copy"),
        )
    return tmp_path


async def test_over_tls(vm1, certificates):
    await vm1.unplug()
    encrypted = MigrationParameters(tls=str(certificates))
    await vm1.migrate("hostb", encrypted)
    assert vm1.host == "hostb"
    # The certificate names that host's address, and no other's.
    with pytest.raises(ExecutionFailed) as caught:
        await vm1.migrate("hosta", encrypted)
    assert caught.value.slug is Slug.MIGRATION_FAILED
    assert (await vm1.run("echo here")).stdout == "here\n"


async def test_to_another_fabric(vm1, testbed):
    """The HCA of the destination is another one: other MAC, GUID, subnet."""
    guid_before = (await vm1.run("cat /sys/class/infiniband/rxe0/node_guid")).stdout
    await vm1.unplug()
    await vm1.migrate("hostc", MigrationParameters(multifd_channels=2))
    await vm1.plug()
    await vm1.wait_verbs()
    assert (await vm1.run("cat /sys/class/infiniband/rxe0/node_guid")).stdout != guid_before
    assert vm1.hca_address in (await vm1.run("ip -4 -brief address")).stdout


async def test_an_attached_hca_is_refused(vm1):
    with pytest.raises(PreflightRefused) as caught:
        await vm1.migrate("hostb")
    assert caught.value.slug is Slug.HCA_ATTACHED
    assert vm1.host == "hosta"
    assert (await vm1.run("rdma link show")).stdout.count("ACTIVE") == 1


async def test_a_destination_that_dies_leaves_the_source_running(vm1, testbed):
    await vm1.unplug()
    slow = MigrationParameters(bandwidth=20 * 2**20)
    moving = asyncio.create_task(vm1.migrate("hostb", slow))
    async with vm1.monitor.watch(["MIGRATION"]) as events:
        assert await events.wait(30, lambda event: event["data"]["status"] == "active")
    await testbed.keeper.request(Kill("vm1@hostb"))
    with pytest.raises(ExecutionFailed) as caught:
        await moving
    assert caught.value.slug is Slug.MIGRATION_FAILED
    assert (await vm1.monitor.execute("query-status"))["running"]
    assert (await vm1.run("echo here")).stdout == "here\n"
    assert list(await testbed.keeper.processes()) == ["vm1@hosta", "vm2@hosta"]
    # Nothing of the failed attempt is in the way of the next.
    await vm1.migrate("hostb")


async def test_a_migration_ends_at_its_deadline(vm1, testbed):
    await vm1.unplug()
    with pytest.raises(ExecutionFailed) as caught:
        await vm1.migrate("hostb", MigrationParameters(bandwidth=2**20), deadline_s=2)
    assert caught.value.slug is Slug.MIGRATION_TIMEOUT
    assert (await vm1.run("echo here")).stdout == "here\n"
    assert "vm1@hostb" not in await testbed.keeper.processes()


async def test_an_interrupted_migration_is_cancelled(vm1, testbed):
    await vm1.unplug()
    slow = MigrationParameters(bandwidth=2**20)
    moving = asyncio.create_task(vm1.migrate("hostb", slow))
    async with vm1.monitor.watch(["MIGRATION"]) as events:
        assert await events.wait(30, lambda event: event["data"]["status"] == "active")
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert (await vm1.monitor.execute("query-migrate"))["status"] == "cancelled"
    assert (await vm1.run("echo here")).stdout == "here\n"
    assert "vm1@hostb" not in await testbed.keeper.processes()


async def test_the_two_sides_cannot_be_confused(vm1, testbed):
    """What QEMU would accept and nobody should ask: each is refused with the reason."""
    await vm1.unplug()
    destination = await vm1.spawn_destination("hostb")
    mine = qemu.hca(testbed.topology, "hosta", "vm1")
    with pytest.raises(PreflightRefused) as caught:
        await hca.plug(destination, mine)
    assert caught.value.slug is Slug.PLUG_REFUSED
    with pytest.raises(PreflightRefused) as caught:
        await migration.listen(vm1.monitor, "10.66.0.102", MigrationParameters())
    assert caught.value.slug is Slug.MIGRATION_BUSY
    with pytest.raises(ExecutionFailed) as caught:
        await migration.listen(destination, "192.0.2.1", MigrationParameters())
    assert caught.value.slug is Slug.MIGRATION_LISTEN_FAILED

    source = vm1.monitor
    await migration.migrate(
        source, destination, "10.66.0.102", hca_slots=[qemu.HCA_SLOT], deadline_s=60
    )
    with pytest.raises(PreflightRefused) as caught:
        await migration.resume(source)
    assert caught.value.slug is Slug.SPLIT_BRAIN_REFUSED
    with pytest.raises(PreflightRefused) as caught:
        await migration.refuse_unmovable(source, [qemu.HCA_SLOT])
    assert caught.value.slug is Slug.MIGRATION_BUSY
    await vm1.arrive("hostb", destination)
    assert (await vm1.run("echo there")).stdout == "there\n"


async def test_a_killed_qemu_is_noticed_at_once(start_testbed):
    from kawarimi_testbed.topology import Topology

    async with start_testbed(Topology(name="killed", guests=1), wait=False) as testbed:
        monitor = testbed.guest("vm1").monitor
        async with monitor.watch(["RESUME"]) as events:
            waiting = asyncio.create_task(events.wait(60, lambda _: True))
            await testbed.keeper.request(Kill("vm1@hosta"))
            with pytest.raises(ExecutionFailed) as caught:
                await asyncio.wait_for(waiting, 10)
        assert caught.value.slug is Slug.QEMU_GONE
        with pytest.raises(ExecutionFailed) as caught:
            await monitor.execute("query-status")
        assert caught.value.slug is Slug.QEMU_GONE

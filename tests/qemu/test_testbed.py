"""Two guests with real verbs, and Open MPI over them."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path

import pytest

from kawarimi_bridge.cli.output import Progress
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.image.build import Image, build_image
from kawarimi_testbed.mpi import mpirun
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import Topology
from kawarimi_wire.errors import ExecutionFailed, Slug
from leftovers import leftovers

OPEN_DEVICE = """
from pyverbs.device import Context, get_device_list
(device,) = get_device_list()
with Context(name=device.name.decode()) as context:
    print(device.name.decode(), context.query_port(1).state)
"""
PORT_ACTIVE = 4


async def packets_sent(guest: Guest) -> int:
    counter = "/sys/class/infiniband/rxe0/ports/1/hw_counters/sent_pkts"
    return int((await guest.run(f"cat {counter}")).stdout)


async def test_two_guests_come_up_with_verbs(start_testbed, figure):
    started = time.monotonic()
    build_image(Progress(enabled=False))
    cached = time.monotonic()
    async with start_testbed(Topology(name="boot", ssh=True)) as testbed:
        up = time.monotonic()
        states = await asyncio.gather(
            *(guest.run("rdma link show") for guest in testbed.guests.values())
        )
        assert all("state ACTIVE" in state.stdout for state in states)
        # mpirun may start its daemons over ssh, too.
        words = mpirun(testbed.topology, ["vm1", "vm2"], ["ring", "1", "64"], btl="tcp", ssh=True)
        ring = await testbed.guest("vm1").run(words, deadline_s=120)
        assert json.loads(ring.stdout)["errors"] == 0
    figure(f"image from the cache {cached - started:.1f} s, guests up {up - cached:.1f} s")


async def test_pyverbs_opens_the_device(testbed):
    for guest in testbed.guests.values():
        opened = await guest.run(["python3", "-c", OPEN_DEVICE])
        assert opened.stdout.split() == ["rxe0", str(PORT_ACTIVE)]


async def test_rc_pingpong_between_the_guests(testbed):
    vm1, vm2 = testbed.guest("vm1"), testbed.guest("vm2")
    pingpong = "ibv_rc_pingpong -d rxe0 -g 1 -n 100"
    server = asyncio.create_task(vm2.run(pingpong, deadline_s=60))
    await vm2.run("until ss -Htln | grep -q :18515; do sleep 0.05; done", deadline_s=30)
    client = await vm1.run(f"{pingpong} {vm2.hca_address}", deadline_s=60)
    assert "100 iters" in client.stdout
    assert "100 iters" in (await server).stdout


async def test_openib_traffic_is_on_the_hca_and_tcp_traffic_is_not(testbed):
    vm1, vm2 = testbed.guest("vm1"), testbed.guest("vm2")
    moved = {}
    for btl in ("openib", "tcp"):
        before = [await packets_sent(guest) for guest in (vm1, vm2)]
        words = mpirun(testbed.topology, ["vm1", "vm2"], ["ring", "1", "65536"], btl=btl)
        ended = await vm1.run(words, deadline_s=90)
        after = [await packets_sent(guest) for guest in (vm1, vm2)]
        report = json.loads(ended.stdout)
        assert report["errors"] == 0
        moved[btl] = (report["iterations"], [b - a for a, b in zip(before, after, strict=True)])
    iterations, packets = moved["openib"]
    # Each iteration sends 64 KiB from each side; a RoCE packet carries at most 4 KiB.
    assert min(packets) >= iterations * 16
    assert moved["tcp"][1] == [0, 0]


async def test_two_ranks_per_guest(testbed):
    words = mpirun(
        testbed.topology, ["vm1", "vm2"], ["ring", "1", "4096"], btl="openib", ranks_per_guest=2
    )
    report = json.loads((await testbed.guest("vm1").run(words, deadline_s=120)).stdout)
    assert report["errors"] == 0
    assert report["iterations"] > 1


async def test_exit_code_output_and_input_of_commands(testbed):
    vm1: Guest = testbed.guest("vm1")
    ended = await vm1.run("echo out; echo err >&2; exit 7", check=False)
    assert (ended.exit_code, ended.stdout, ended.stderr) == (7, "out\n", "err\n")
    # A reader that leaves early ends its writer, without a word.
    assert (await vm1.run("yes | head -1")).stderr == ""
    # What a command leaves in the background must not hold its end up.
    assert (await vm1.run("sleep 60 & echo done", deadline_s=15)).stdout == "done\n"


async def test_a_command_ends_with_its_connection(testbed: Testbed):
    vm1 = testbed.guest("vm1")
    async with vm1.remote.session(["sleep", "987"]):
        await vm1.run("until pgrep -f 'sleep 98[7]'; do sleep 0.05; done", deadline_s=15)
    await vm1.run("while pgrep -f 'sleep 98[7]'; do sleep 0.05; done", deadline_s=15)


async def test_a_guest_that_cannot_boot_leaves_its_evidence(image, tmp_path):
    """Without an initrd the kernel panics, QEMU ends, and the error names the logs."""
    for file in (image.rootfs, image.vmlinux):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / image.initrd.name).write_bytes(b"no archive")
    topology = Topology(name="panics", guests=1)
    with pytest.raises(ExecutionFailed) as caught:
        async with Testbed(topology, Image(tmp_path)):
            pytest.fail("a guest without an initrd has booted")
    assert caught.value.slug is Slug.QEMU_GONE
    evidence = Path(str(caught.value.facts["evidence"]))
    assert "panic" in (evidence / "vm1@hosta/console.log").read_text()
    for name in ("command-line", "qmp.log", "qemu.log", "agent.log"):
        assert (evidence / "vm1@hosta" / name).exists()
    assert (evidence / "keeper.log").exists()
    assert leftovers(topology) == []
    shutil.rmtree(evidence)


async def test_a_qemu_that_does_not_start_is_quoted(image):
    topology = Topology(name="wrong", guests=1, accelerator="no-such-accelerator")
    with pytest.raises(ExecutionFailed) as caught:
        async with Testbed(topology, image):
            pytest.fail("QEMU has started")
    assert caught.value.slug is Slug.QEMU_START_FAILED
    assert "no-such-accelerator" in caught.value.what
    assert leftovers(topology) == []
    shutil.rmtree(str(caught.value.facts["evidence"]))

"""`kawarimi testbed`: build, up, status, sh, logs, down."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import click

from kawarimi_bridge.cli.output import Progress, json_option, print_json
from kawarimi_testbed import ownership
from kawarimi_testbed.commands import require_root
from kawarimi_testbed.image.build import Image, build_image
from kawarimi_testbed.keeper import Description, read_description
from kawarimi_testbed.paths import run_dir
from kawarimi_testbed.remote import Remote
from kawarimi_testbed.shell import run_shell
from kawarimi_testbed.spawn import spawn_qemu
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import HcaVariant, Topology
from kawarimi_wire.errors import ExecutionFailed, KawarimiError, Slug

_STATUS_DEADLINE_S = 10.0

name_option = click.option(
    "--name", default="default", show_default=True, help="Which testbed; several can run at once."
)

hca_option = click.option(
    "--hca",
    type=click.Choice([str(variant) for variant in HcaVariant]),
    default="virtio",
    show_default=True,
    help="e1000e has a slow link, pciehp a slow unplug.",
)


@click.group()
def testbed() -> None:
    """Guests with a soft-RoCE HCA under plain QEMU, for development and tests.

    Three hosts, each a network namespace: hosta and hostc have a fabric of their own, hostb has
    Ethernet only. Needs root; needs neither RDMA hardware nor KVM.
    """


@testbed.command()
@click.option("--rebuild", is_flag=True, help="Build it anew even if it is in the cache.")
@json_option
def build(rebuild: bool, as_json: bool) -> None:
    """Build the guest image, or find it built."""
    image = build_image(Progress(), rebuild=rebuild)
    if as_json:
        print_json({"image": str(image.folder)})
    else:
        click.echo(image.folder)


@testbed.command()
@name_option
@click.option("--guests", default=2, show_default=True, help="How many guests.")
@click.option("--memory", default=512, show_default=True, help="MiB of memory of each guest.")
@hca_option
@click.option("--no-hca", is_flag=True, help="Boot the guests without their HCA.")
@click.option("--agents", is_flag=True, help="Run a guest agent in the guests.")
@click.option("--ssh", is_flag=True, help="Run sshd in the guests, with keys for each other.")
@json_option
def up(
    name: str,
    guests: int,
    memory: int,
    hca: str,
    no_hca: bool,
    agents: bool,
    ssh: bool,
    as_json: bool,
) -> None:
    """Start a testbed; it runs until `down`.

    Guests are called vm1, vm2, … and start on hosta.
    """
    topology = Topology(
        name=name,
        guests=guests,
        guest_memory_mib=memory,
        hca=HcaVariant(hca),
        agents=agents,
        ssh=ssh,
    )
    progress = Progress()
    image = build_image(progress)

    async def start() -> Path:
        started = Testbed(topology, image, with_hca=not no_hca, detached=True, progress=progress)
        async with started:
            return started.logs

    logs = asyncio.run(start())
    if as_json:
        print_json({"name": name, "guests": topology.guest_names, "logs": str(logs)})
    else:
        click.echo(f"{name}: {', '.join(topology.guest_names)} up; logs in {logs}")


@testbed.command()
@name_option
@json_option
def status(name: str, as_json: bool) -> None:
    """Show the guests: where each runs, whether it answers, its verbs device."""
    description = _running(name)

    async def ask() -> list[dict[str, object]]:
        keeper = await ownership.KeeperClient.connect(run_dir(name))
        processes = await keeper.processes()
        return await asyncio.gather(
            *(
                _guest_status(description.topology, guest, processes)
                for guest in description.topology.guest_names
            )
        )

    guests = asyncio.run(ask())
    if as_json:
        print_json({"name": name, "logs": description.logs, "guests": guests})
        return
    for guest in guests:
        click.echo(
            f"{guest['guest']:6} {guest['host'] or '-':8} {guest['address']:12} {guest['verbs']}"
        )


async def _guest_status(
    topology: Topology, guest: str, processes: dict[str, int]
) -> dict[str, object]:
    hosts = [process.split("@")[1] for process in processes if process.startswith(f"{guest}@")]
    try:
        answer = await _remote(topology, guest).run("rdma link show", deadline_s=_STATUS_DEADLINE_S)
        verbs = answer.stdout.strip() or "no verbs device"
    except KawarimiError as error:
        verbs = error.what
    return {
        "guest": guest,
        "host": hosts[0] if hosts else None,
        "address": topology.guest_address(guest),
        "verbs": verbs,
    }


@testbed.command()
@name_option
@click.argument("guest")
@click.argument("host")
def spawn(name: str, guest: str, host: str) -> None:
    """Start a QEMU on HOST that waits for GUEST, as the bridge's configuration says."""
    description = _running(name)
    topology = description.topology
    topology.guest_number(guest)
    topology.host(host)

    async def start() -> None:
        keeper = await ownership.KeeperClient.connect(run_dir(name))
        image, logs = Image(Path(description.image)), Path(description.logs)
        await spawn_qemu(keeper, topology, image, logs, guest, host, incoming=True, with_hca=False)

    asyncio.run(start())


@testbed.command(context_settings={"ignore_unknown_options": True})
@name_option
@click.argument("guest")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def sh(name: str, guest: str, command: tuple[str, ...]) -> int:
    """Run COMMAND in GUEST, or a shell; exits as it does."""
    topology = _running(name).topology
    topology.guest_number(guest)
    return asyncio.run(run_shell(_remote(topology, guest), command))


@testbed.command()
@name_option
@json_option
def logs(name: str, as_json: bool) -> None:
    """Collect the guests' kernel logs, and list all logs of a testbed."""
    description = _running(name)
    folder = Path(description.logs)

    async def collect() -> None:
        await asyncio.gather(
            *(
                _save_kernel_log(description.topology, guest, folder)
                for guest in description.topology.guest_names
            )
        )

    asyncio.run(collect())
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    if as_json:
        print_json({"folder": str(folder), "files": files})
    else:
        click.echo("\n".join(files))


async def _save_kernel_log(topology: Topology, guest: str, folder: Path) -> None:
    log = await _remote(topology, guest).run("dmesg", deadline_s=_STATUS_DEADLINE_S)
    (folder / f"{guest}-kernel.log").write_text(log.stdout)


@testbed.command()
@name_option
@click.option("--keep-logs", is_flag=True, help="Leave the logs where they are.")
def down(name: str, keep_logs: bool) -> None:
    """End a testbed and remove everything of it, also of one whose keeper was killed."""
    require_root("Ending a testbed")
    folder = run_dir(name)
    if ownership.sweep(folder):
        return
    description = _running(name)

    async def end() -> None:
        keeper = await ownership.KeeperClient.connect(folder)
        await keeper.down()

    asyncio.run(end())
    if not keep_logs:
        shutil.rmtree(description.logs, ignore_errors=True)


def _running(name: str) -> Description:
    """Return a running testbed's description.

    :raise PreflightRefused: `not-root`.
    :raise ExecutionFailed: `testbed-not-running`.
    """
    require_root("A testbed")
    folder = run_dir(name)
    if not ownership.is_running(folder):
        raise ExecutionFailed(
            Slug.TESTBED_NOT_RUNNING,
            f"The testbed {name!r} does not run.",
            untouched="nothing was begun",
            hint="start it with 'kawarimi testbed up'",
        )
    return read_description(folder)


def _remote(topology: Topology, guest: str) -> Remote:
    return Remote(guest, topology.switch_namespace, topology.guest_address(guest))

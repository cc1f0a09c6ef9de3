"""Start the QEMU of a guest on a host of a running testbed."""

from __future__ import annotations

from pathlib import Path

from kawarimi_testbed import qemu
from kawarimi_testbed.image.build import Image
from kawarimi_testbed.keeper import Spawn
from kawarimi_testbed.ownership import KeeperClient
from kawarimi_testbed.topology import Topology


def process_name(guest: str, host: str) -> str:
    """Return what the QEMU of a guest on a host is called."""
    return f"{guest}@{host}"


async def spawn_qemu(
    keeper: KeeperClient,
    topology: Topology,
    image: Image,
    logs: Path,
    guest: str,
    host: str,
    *,
    incoming: bool,
    with_hca: bool,
) -> Path:
    """Start it; return its folder, where its monitor sockets appear.

    :param logs: the testbed's folder of logs.
    :raise ExecutionFailed: what the keeper answers.
    """
    process = process_name(guest, host)
    folder = keeper.folder / process
    folder.mkdir(exist_ok=True)
    own_logs = logs / process
    own_logs.mkdir(parents=True, exist_ok=True)
    argv = qemu.argv(
        topology,
        host,
        guest,
        image,
        keeper.folder / "payload.img",
        folder,
        own_logs,
        incoming=incoming,
        with_hca=with_hca,
    )
    (own_logs / "command-line").write_text("\n".join(argv) + "\n")
    for socket in folder.glob("*.sock"):
        socket.unlink()
    taps = qemu.taps(topology, host, guest)
    await keeper.request(Spawn(process, host, argv, str(own_logs / "qemu.log"), taps))
    return folder

"""The project's own files for the guests: a small image beside the big one, made in a second.

It holds the guest's init and servers, the compiled test programs, our Python packages and the
addresses of this testbed, and is mounted at /opt/kawarimi. A change of our code needs no new image.
"""

from __future__ import annotations

import compileall
import py_compile
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import kawarimi_agent
import kawarimi_bridge
import kawarimi_ompi
import kawarimi_wire
from kawarimi_ompi.build import build, build_ucp, find_open_mpi
from kawarimi_testbed.agents import write_agents
from kawarimi_testbed.commands import Programs
from kawarimi_testbed.image.rootfs import write_image
from kawarimi_testbed.paths import package_dir
from kawarimi_testbed.topology import Topology

_DEADLINE_S = 60.0
_OUR_PACKAGES = (kawarimi_agent, kawarimi_bridge, kawarimi_ompi, kawarimi_wire)
_DISTRIBUTIONS = ("click", "msgspec")
"""What our packages need in a guest and Debian does not have, or not as new."""
FOLDER = "/opt/kawarimi"
"""Where it is mounted."""
COMPONENT_FOLDER = f"{FOLDER}/ompi"
"""Where the guests find the rank shim's native parts, of both kinds."""


def write_payload(
    topology: Topology,
    work: Path,
    target: Path,
    keys: Path,
    log: Path,
    programs: Sequence[Path] = (),
) -> None:
    """Write the payload image of a testbed.

    :param work: an empty folder for its tree; it is left there.
    :param keys: the folder for the harness's side of the agents' keys, if there are agents.
    :param programs: more MPI programs (`*.c`, compiled with mpicc) and files (copied) for `bin/`,
        and folders, which go beside it.
    :raise ExecutionFailed: `command-failed` if a program does not compile.
    """
    tools = Programs(log)
    guest = work / "guest"
    binaries = work / "bin"
    etc = work / "etc"
    for folder in (guest, binaries, etc, work / "lib"):
        folder.mkdir(parents=True)
    for name in ("init", "rshd.py", "rsh.py", "hcad.py"):
        shutil.copy2(package_dir() / "guest_files" / name, guest / name)
    for name in ("kawarimi", "kawarimi-rsh"):
        shutil.copy2(package_dir() / "guest_files" / name, binaries / name)
    for program in [*sorted((package_dir() / "programs").glob("*.c")), *programs]:
        if program.suffix == ".c":
            argv = ["mpicc", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-std=gnu11"]
            output = binaries / program.stem
            tools.run([*argv, "-o", output, program, "-lm"], deadline_s=_DEADLINE_S)
        elif program.is_dir():
            shutil.copytree(program, work / program.name, symlinks=True)
        else:
            shutil.copy2(program, binaries / program.name)
    _copy_python(work / "lib")
    shims = work / Path(COMPONENT_FOLDER).name
    shutil.copytree(build(find_open_mpi()), shims)
    shutil.copy2(build_ucp(), shims)
    (etc / "hosts").write_text(_hosts_file(topology))
    (etc / "hca").write_text(_hca_file(topology))
    if topology.ssh:
        _write_ssh_keys(work / "ssh", tools)
    if topology.agents:
        write_agents(topology, work / "agent", keys)
    write_image(work, target, tools, size="64M")


def _copy_python(target: Path) -> None:
    """Copy our packages and the distributions that they need to a folder for PYTHONPATH."""
    for package in _OUR_PACKAGES:
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, target / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _DISTRIBUTIONS:
        for file in metadata.files(name) or []:
            if file.suffix in (".py", ".so"):
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(str(file.locate())), target / file)
    # Compiled here: an emulated guest would compile it all at every start, the image being
    # read-only, and take ten seconds for it.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(target, quiet=1, invalidation_mode=mode)


def _hosts_file(topology: Topology) -> str:
    lines = ["127.0.0.1 localhost"]
    lines += [f"{topology.guest_address(guest)} {guest}" for guest in topology.guest_names]
    return "\n".join(lines) + "\n"


def _hca_file(topology: Topology) -> str:
    """Return what hcad.py reads: MAC, address, MTU of every HCA that a guest may be given.

    Where there are agents, the address is theirs to set.
    """
    rows = [
        f"{topology.hca_mac(host.name, guest)} "
        f"{'-' if topology.agents else topology.hca_prefix(host.name, guest)} {topology.hca_mtu}"
        for host in topology.hosts
        if host.fabric
        for guest in topology.guest_names
    ]
    return "".join(row + "\n" for row in rows)


def _write_ssh_keys(folder: Path, tools: Programs) -> None:
    """Make keys that live as long as the testbed, for mpirun over ssh between its guests."""
    folder.mkdir()
    for name in ("host_key", "id_ed25519"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "kawarimi-testbed"]
        tools.run([*argv, "-f", folder / name], deadline_s=_DEADLINE_S)
    shutil.copy2(folder / "id_ed25519.pub", folder / "authorized_keys")
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"* {host_key}\n")

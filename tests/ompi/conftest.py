"""Fixtures: an Open MPI, the component built for it, a namespace with a veth pair, programs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from harness import PROGRAMS, Launcher, Site, run

from kawarimi_ompi.build import OpenMpi, build, build_ucp, find_open_mpi


@pytest.fixture(scope="session")
def open_mpi() -> OpenMpi:
    return find_open_mpi()


@pytest.fixture(scope="session")
def namespace() -> Iterator[str]:
    """A network of our own: a veth pair with an address on one end."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a network namespace")
    name = f"kwt-{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", name, "link", "add", "kwt0", "type", "veth", "peer", "name", "kwt1")
        run("ip", "-n", name, "addr", "add", "10.99.0.1/24", "dev", "kwt0")
        run("ip", "-n", name, "link", "set", "kwt0", "up")
        run("ip", "-n", name, "link", "set", "kwt1", "up")
        yield name
    finally:
        run("ip", "netns", "del", name)


@pytest.fixture(scope="session")
def site(open_mpi: OpenMpi, namespace: str) -> Site:
    return Site(open_mpi, build(open_mpi), namespace, "kwt0", build_ucp())


@pytest.fixture(scope="session")
def program(open_mpi: OpenMpi, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compile a program of tests/ompi/programs, once."""
    directory = tmp_path_factory.mktemp("programs")

    def compiled(name: str) -> Path:
        binary = directory / name
        if not binary.exists():
            flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
            source = PROGRAMS / f"{name}.c"
            run(str(open_mpi.mpicc), *flags, "-o", str(binary), str(source), "-lpthread")
        return binary

    return compiled


@pytest.fixture
async def launcher(site: Site, tmp_path: Path) -> AsyncIterator[Launcher]:
    """Start jobs whose ranks dial an agent in this process."""
    made = Launcher(site, tmp_path)
    await made.server.start()
    yield made
    await made.server.stop()

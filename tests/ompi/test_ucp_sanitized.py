"""The library of the kind `ucp` under sanitizers, in real jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import PROGRAMS, Launcher, run

from kawarimi_ompi.build import OpenMpi, build_ucp

pytestmark = [pytest.mark.root, pytest.mark.netns]

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
OPTIONS = {
    # The library is preloaded before the sanitizer, which the program itself brings.
    "ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0:abort_on_error=0",
}
SWITCHES = 30


@pytest.fixture(scope="session")
def sanitized(open_mpi: OpenMpi, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compile a program with the sanitizers."""
    directory = tmp_path_factory.mktemp("sanitized")

    def compiled(name: str) -> Path:
        source = PROGRAMS / f"{name}.c"
        binary = directory / name
        run(str(open_mpi.mpicc), "-std=gnu11", "-O1", "-g", *FLAGS, "-o", str(binary), str(source))
        return binary

    return compiled


@pytest.mark.parametrize(("fabric", "fallback"), [("tcp", "sm"), ("sm", "tcp")])
async def test_traffic(
    launcher: Launcher, sanitized: Callable[[str], Path], fabric: str, fallback: str
) -> None:
    stop = launcher.directory / "stop"
    launcher.site = launcher.site._replace(library=build_ucp(flags=FLAGS))
    async with launcher.start(
        *(sanitized("traffic"), stop, 3),
        **{"ranks": 2, "kind": "ucp", "fabric": fabric, "fallback": fallback, **OPTIONS},
    ) as job:
        for number in range(SWITCHES):
            await job.switch((fallback, fabric)[number % 2])
            await asyncio.sleep(0.02)  # let the program have some of the time
        stop.touch()
        assert "OK" in await job.succeed()


@pytest.mark.parametrize("kind", ["probed", "cancelled", "freed", "strided", "truncated"])
async def test_pending(launcher: Launcher, sanitized: Callable[[str], Path], kind: str) -> None:
    go = launcher.directory / "go"
    launcher.site = launcher.site._replace(library=build_ucp(flags=FLAGS))
    async with launcher.start(
        sanitized("pending"), kind, go, **{"ranks": 2, "kind": "ucp", **OPTIONS}
    ) as job:
        await job.printed("WAITING")
        await job.switch("sm")
        await job.switch("tcp")
        go.touch()
        assert "OK" in await job.succeed()

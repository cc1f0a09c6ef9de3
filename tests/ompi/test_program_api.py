"""The interface for MPI programs in Python, in real mpi4py jobs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from harness import PROGRAMS, Job, Launcher

from kawarimi_agent.hold import Hold
from kawarimi_ompi import program
from kawarimi_ompi.protocol import State
from kawarimi_wire.errors import ExecutionFailed, PreflightRefused, Slug

pytestmark = [pytest.mark.root, pytest.mark.netns]

THREADS = {"MPI4PY_RC_THREAD_LEVEL": "funneled"}
"""mpi4py asks for MPI_THREAD_MULTIPLE by itself, with which no job is switched."""


@asynccontextmanager
async def aware(launcher: Launcher, ranks: int) -> AsyncIterator[Job]:
    """Run programs/aware.py, to its good end."""
    stop = launcher.directory / "stop"
    words = (PROGRAMS / "aware.py", stop, launcher.directory / "defer")
    async with launcher.start(Path(sys.executable), *words, ranks=ranks, **THREADS) as job:
        yield job
        stop.touch()
        assert "OK" in await job.succeed()


async def test_program_is_told_of_switches(launcher: Launcher) -> None:
    async with aware(launcher, ranks=3) as job:
        for rank in range(3):
            await job.printed(f"LOADED {rank} True ''")
        for number, to in enumerate(("tcp", "vader", "tcp"), 1):
            report = await job.switch(to)
            assert report.changed
            for rank in range(3):
                others = [(other, (to,)) for other in range(3) if other != rank]
                await job.printed(f"TOLD {rank} {number} {to} {others}")


async def test_program_defers_a_switch(launcher: Launcher) -> None:
    defer = launcher.directory / "defer"
    async with aware(launcher, ranks=2) as job:
        await job.switch("tcp")
        for turn, to in enumerate(("vader", "tcp"), 1):
            states = job.states()
            defer.touch()
            await job.printed("DEFERS", turn)
            with pytest.raises(ExecutionFailed) as caught:
                await job.switch(to, deadline_s=0.5)
            assert caught.value.slug is Slug.DEFERRED_BY_PROGRAM
            assert caught.value.facts["reasons"] == {"rank 1": "thinks"}
            assert job.states() == states
            with pytest.raises(ExecutionFailed) as caught:
                await Hold("test", job.ranks, lease_s=30, deadline_s=0.5).begin()
            assert caught.value.slug is Slug.DEFERRED_BY_PROGRAM
            # One that has the time waits until the section ends.
            waiting = asyncio.create_task(job.switch(to))
            await asyncio.sleep(0.1)  # so that it does wait
            defer.unlink()
            assert (await waiting).changed
            await job.printed("ALLOWS", turn)
        assert job.states() == {State.ATTACHED}


async def test_program_that_is_poked_is_told_in_its_next_calls(launcher: Launcher) -> None:
    """A poke interrupts the interpreter anywhere: nothing of Python may run then."""
    code = """
import sys, time
from pathlib import Path
from mpi4py import MPI
from kawarimi_ompi import program
told, world = [], MPI.COMM_WORLD
program.on_switch(told.append)
world.barrier()
rounds = 0
while not world.bcast(Path(sys.argv[1]).exists()):
    ends = time.monotonic() + 0.2
    while time.monotonic() < ends:
        sum(str(i).count("7") for i in range(1000))
    rounds += 1
for _ in range(200):
    world.barrier()
numbers = [exchange.number for exchange in told]
sys.stdout.write(f"TOLD {numbers == sorted(numbers)} {len(numbers)}\\n")
"""
    script = launcher.directory / "computing.py"
    script.write_text(code)
    stop = launcher.directory / "stop"
    async with launcher.start(Path(sys.executable), script, stop, ranks=2, **THREADS) as job:
        for number in range(20):
            await job.switch(("tcp", "vader")[number % 2], poke=True)
        stop.touch()
        text = await job.succeed()
        assert text.count("TOLD True") == 2
        assert "TOLD True 0" not in text


def test_without_the_shim_it_is_harmless_and_says_so() -> None:
    assert not program.loaded()
    for question in (program.transports, program.last_switch, program.refusal):
        with pytest.raises(PreflightRefused) as caught:
            question()
        assert caught.value.slug is Slug.SHIM_NOT_LOADED
    called: list[program.Exchange] = []
    end = program.on_switch(called.append)
    with program.not_now("a reason"), program.not_now("another"):
        pass
    end()
    end()
    assert not called


def test_header_is_one_that_a_c_program_can_include(tmp_path: Path) -> None:
    source = tmp_path / "program.c"
    source.write_text('#include "kawarimi_program.h"\nint main(void) { return 0; }\n')
    native = Path(program.__file__).parent / "native"
    flags = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only")
    subprocess.run(["gcc", *flags, f"-I{native}", source], check=True, timeout=60)

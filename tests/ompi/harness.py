"""Real MPI jobs on one host, with an agent in the test's own process."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from kawarimi_agent.coordinator import Switch
from kawarimi_agent.jobs import Jobs
from kawarimi_agent.ranks import Rank, RankServer
from kawarimi_agent.report import SwitchReport
from kawarimi_ompi.build import OpenMpi
from kawarimi_ompi.launcher import Choice, environment, parameters
from kawarimi_ompi.protocol import Blob, Command, Outcome, State, Step, StepFlag
from kawarimi_ompi.ucp import UcpChoice, launch

PROGRAMS = Path(__file__).parent / "programs"

PATIENCE_S = 120.0
"""For what must succeed: a shared machine may stand still for half a minute, and has.

What happens at a deadline is tested with deadlines of the tests' own.
"""


def run(*command: str) -> None:
    """Run a command that has to succeed."""
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def other_ucx(directory: Path, what: str) -> Path:
    """Make a libucp that differs from the real one in this; to be preloaded."""
    library = directory / "libucp-other.so"
    flags = ("-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-D{what}")
    # Linked to the one behind it, although nothing of that is needed by name.
    linked = ("-Wl,--no-as-needed", "-lucp")
    run("cc", *flags, "-o", str(library), str(PROGRAMS / "other_ucp.c"), *linked)
    return library


class Site(NamedTuple):
    """What every job of a test run shares."""

    open_mpi: OpenMpi
    component: Path
    namespace: str
    interface: str
    library: Path


class Job:
    """One running mpirun.

    :ivar ranks: the ranks that have said hello to the test's agent, by number.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, server: RankServer, output: Path, size: int
    ) -> None:
        self.process = process
        self.output = output
        self._server = server
        self._size = size

    @property
    def ranks(self) -> list[Rank]:
        return sorted(self._server.ranks, key=lambda rank: rank.hello.vpid)

    async def hello(self) -> None:
        """Wait until every rank has said hello."""
        complete = await self._server.wait(
            lambda: len(self._server.ranks) == self._size, PATIENCE_S
        )
        assert complete, f"{len(self.ranks)} of {self._size} ranks\n{self.text()}"

    async def switch(self, to: str, **options: object) -> SwitchReport:
        options.setdefault("deadline_s", PATIENCE_S)
        return await Switch("test", self.ranks, to, **options).run()  # type: ignore[arg-type]

    async def exit_code(self, deadline_s: float = PATIENCE_S) -> int:
        async with asyncio.timeout(deadline_s):
            return await self.process.wait()

    async def succeed(self) -> str:
        """Wait for the end, which must be a good one; what the job printed."""
        code = await self.exit_code()
        assert code == 0, self.text()
        return self.text()

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    async def printed(self, what: str, times: int = 1, deadline_s: float = PATIENCE_S) -> None:
        """Wait until the job has printed something, so many times in all."""
        async with asyncio.timeout(deadline_s):
            while self.text().count(what) < times:
                assert self.process.returncode is None, self.text()
                await asyncio.sleep(0.01)  # output files have no other way to wait for them

    def states(self) -> set[State]:
        return {rank.state for rank in self.ranks}


class Launcher:
    """Starts jobs of one test, and ends those that it left."""

    def __init__(self, site: Site, directory: Path) -> None:
        self.site = site
        self.directory = directory
        self.socket = directory / "ranks.sock"
        self.server = RankServer(self.socket)
        self.jobs = Jobs(self.server)
        self.ucp_devices = ""
        self.ucp_kept: int | None = None
        self._count = 0

    def command(
        self, command: Sequence[str], kind: str, fabric: str, fallback: str, more: dict[str, str]
    ) -> tuple[list[str], dict[str, str]]:
        given = {
            **{k: v for k, v in os.environ.items() if not k.startswith("OMPI_")},
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_mpi_yield_when_idle": "1",
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
            "OMPI_MCA_hwloc_base_binding_policy": "none",
            **more,
        }
        site = self.site
        if kind == "ucp":
            # Nothing but the sides' own transports, so that every message crosses.
            ucp = UcpChoice(fabric, fallback, "", self.socket, self.ucp_devices, self.ucp_kept)
            return launch(command, given, parameters(command, given), site.library, ucp)
        choice = Choice(fabric, fallback, self.socket, site.interface)
        return list(command), environment(command, given, site.open_mpi, site.component, choice)

    @asynccontextmanager
    async def start(
        self,
        program: Path,
        *arguments: object,
        ranks: int,
        kind: str = "btl",
        fabric: str = "tcp",
        fallback: str = "",
        hello: bool = True,
        **more: str,
    ) -> AsyncIterator[Job]:
        """Start a job; kill it if the test leaves it running."""
        fallback = fallback or {"btl": "vader", "ucp": "sm"}[kind]
        line = ["mpirun", "-n", str(ranks), str(program), *map(str, arguments)]
        command, variables = self.command(line, kind, fabric, fallback, more)
        self._count += 1
        output = self.directory / f"job{self._count}.txt"
        with output.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *("nice", "-n", "10", "ip", "netns", "exec", self.site.namespace, *command),
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        job = Job(process, self.server, output, ranks)
        try:
            if hello:
                await job.hello()
            yield job
        finally:
            pids = [rank.hello.pid for rank in job.ranks]
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            for pid in pids:
                await _end(pid)


async def _end(pid: int) -> None:
    """Make sure that a rank is gone: mpirun starts it in a session of its own."""
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        await asyncio.sleep(0.01)


def descriptors(pid: int) -> int:
    """How many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads(pid: int) -> int:
    """How many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def is_mapped(pid: int, part: str) -> bool:
    """Whether a process maps a file of this name."""
    return part in Path(f"/proc/{pid}/maps").read_text()


def anonymous_kb(pid: int) -> int:
    """Memory of its own that a process has, wherever that is.

    Not all that is resident: pages of libraries come and go as the machine needs its memory.
    """
    text = Path(f"/proc/{pid}/status").read_text()
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE))
    return int(sizes["RssAnon"]) + int(sizes["VmSwap"])


async def attached(job: Job) -> Job:
    await job.switch(job.ranks[0].hello.fabric)
    return job


def epoch_after(ranks: list[Rank]) -> int:
    return max(rank.epoch for rank in ranks) + 1


LEAVE = ["prepare", "select", "drain"]
TAKE = ["init", "modex", "add"]
"""The steps before the commit."""


async def lead(ranks: list[Rank], steps: list[str], epoch: int, among: Sequence[Step] = ()) -> None:
    """Run single steps on every rank, the way the coordinator does.

    :param among: the steps that are meant, where names are not unique.
    """
    hello = ranks[0].hello
    known = {step.name: step for step in among or hello.leave + hello.take}
    blobs: tuple[Blob, ...] = ()
    for name in steps:
        step = known[name]
        replies = await asyncio.gather(
            *(
                rank.call(
                    Command(
                        step.code, epoch, 10.0, blobs=blobs if step.has(StepFlag.SCATTER) else ()
                    )
                )
                for rank in ranks
            )
        )
        assert [reply.outcome for reply in replies] == [Outcome.OK] * len(ranks), (name, replies)
        if step.has(StepFlag.GATHER):
            blobs = tuple(blob for reply in replies for blob in reply.blobs)


UCP_STEPS = ["init", "modex", "hold", "drain", "disconnect", "restore", "enable", "close"]
"""Those of the kind `ucp`, in both directions."""


async def lead_to(job: Job, to: str, last: str) -> None:
    """Lead a job of the kind `ucp` the coordinator's own way, and stop after a step."""
    switch = Switch("test", job.ranks, to, deadline_s=20)
    assert [step.name for step in switch._steps] == UCP_STEPS
    switch._steps = switch._steps[: UCP_STEPS.index(last) + 1]
    await switch.run()

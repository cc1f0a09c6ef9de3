"""Switchable MPI jobs in guests; the verified ring among them, which the demonstration runs."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec

from kawarimi_testbed.guest import Guest
from kawarimi_testbed.mpi import ETHERNET, mpirun_line
from kawarimi_testbed.payload import COMPONENT_FOLDER
from kawarimi_testbed.remote import Completed
from kawarimi_testbed.testbed import Testbed
from kawarimi_wire.errors import ExecutionFailed, KawarimiError, Slug

_LAP_DEADLINE_S = 180.0
"""The first takes as long as the job's start does."""
_END_DEADLINE_S = 60.0
_BLOCK = 16384


class RingReport(msgspec.Struct, frozen=True):
    """What the program says at its end; seconds."""

    iterations: int
    errors: int
    longest_s: float


class Lap(msgspec.Struct, frozen=True):
    """What the program noted about every tenth of a second.

    :ivar seen_s: when its line came, by this machine's clock, seconds since the epoch: the guest's
        own stands still while QEMU does; `iterations`: so far; `longest_s`: the longest one since
        the lap before; `errors`: so far.
    """

    seen_s: float
    iterations: int
    longest_s: float
    errors: int

    @property
    def stalled_from_s(self) -> float:
        """Return when the longest iteration began, at the latest."""
        return self.seen_s - self.longest_s


class RingJob:
    """A ring that runs; made by `running_ring`.

    :ivar laps: all so far, as they come.
    :ivar report: what it said at its end; None before.
    :ivar said: what libraries printed meanwhile: UCX logs to standard output.
    """

    def __init__(self) -> None:
        self.laps: list[Lap] = []
        self.report: RingReport | None = None
        self.said: list[str] = []
        self._came = asyncio.Event()

    async def next_lap(self) -> None:
        """Wait for another lap: whatever stalled the program until now stands in it, or before.

        :raise ExecutionFailed: `command-timeout`: there is none.
        """
        self._came.clear()
        try:
            async with asyncio.timeout(_LAP_DEADLINE_S):
                await self._came.wait()
        except TimeoutError as error:
            what = f"The ring has not come round in {_LAP_DEADLINE_S:.0f} s."
            raise ExecutionFailed(Slug.COMMAND_TIMEOUT, what) from error

    async def follow(self, guest: Guest, marker: str) -> None:
        """Read its laps until it is cancelled."""
        last = b""
        script = f"until [ -s {marker} ]; do sleep 0.05; done; exec tail -n +1 -f {marker}"
        async with guest.remote.session(["sh", "-c", script]) as session:
            async for _, data in session.frames():
                *lines, last = (last + data).split(b"\n")
                self.laps += [self._lap(line) for line in lines]
                if lines:
                    self._came.set()

    @staticmethod
    def _lap(line: bytes) -> Lap:
        iterations, longest, errors = line.split()
        return Lap(time.time(), int(iterations), float(longest), int(errors))


async def run_job(
    testbed: Testbed,
    guests: Sequence[str],
    command: Sequence[str],
    *,
    ranks_per_guest: int = 1,
    kind: str = "btl",
    prefix: str = "",
    variables: Mapping[str, str] | None = None,
    deadline_s: float,
) -> Completed:
    """Run an MPI program over guests, switchable, to its end, as its user would from the first one.

    :param kind: of shim: `btl` or `ucp`; empty for none: such a job is not switchable.
    :param prefix: where the guests have an Open MPI 5; empty for Debian's.
    :param variables: of the program's environment, in all ranks.
    :raise ExecutionFailed: `command-failed` unless it succeeds, `command-timeout` if it has not
        ended in time, and has been ended.
    """
    wrapper = ["kawarimi", "run", "--kind", kind, "--include", ETHERNET]
    wrapper += ["--component", COMPONENT_FOLDER, "--"]
    if not kind:
        wrapper = []
    line = mpirun_line(testbed.topology, guests, command, ranks_per_guest=ranks_per_guest)
    # The link-local one. Over IPv4's, UCX 1.13 aborts: a packet of its UD does not complete on rxe.
    given = {"UCX_IB_GID_INDEX": "0", **(variables or {})}
    launcher = {
        "OMPI_MCA_plm_rsh_agent": "kawarimi-rsh",
        "OMPI_MCA_mca_base_env_list": ";".join(f"{name}={value}" for name, value in given.items()),
    }
    if prefix:
        line[:1] = [f"{prefix}/bin/mpirun", "--prefix", prefix]
        launcher |= {
            "PRTE_MCA_plm_ssh_agent": "kawarimi-rsh",
            "PRTE_MCA_prte_if_include": ETHERNET,
            "LD_LIBRARY_PATH": f"{prefix}/lib",
        }
    return await testbed.guest(guests[0]).run(
        [*wrapper, *line], env=launcher, deadline_s=deadline_s
    )


@contextlib.asynccontextmanager
async def running_ring(
    testbed: Testbed,
    guests: Sequence[str],
    *,
    ranks_per_guest: int = 1,
    seconds: int = 1800,
    pause_s: float = 0.0,
    kind: str = "btl",
    prefix: str = "",
) -> AsyncIterator[RingJob]:
    """Run the ring over guests, switchable, for as long as the context lasts, then let it end.

    :param seconds: how long it runs at most.
    :param pause_s: how long every rank lets go of its processor between two exchanges.
    :param kind: of shim: `btl` or `ucp`.
    :param prefix: where the guests have an Open MPI 5; empty for Debian's.
    :raise ExecutionFailed: `command-timeout` if it does not start, `command-failed` if it ends by
        itself or does not say at its end that every byte was right.
    """
    first = testbed.guest(guests[0])
    marker = f"/run/ring-{secrets.token_hex(4)}"  # several may run at once
    running = asyncio.create_task(
        run_job(
            testbed,
            guests,
            ["ring", str(seconds), str(_BLOCK), marker, f"{pause_s * 1e6:.0f}"],
            ranks_per_guest=ranks_per_guest,
            kind=kind,
            prefix=prefix,
            deadline_s=seconds + _END_DEADLINE_S,
        )
    )
    job = RingJob()
    following = asyncio.create_task(job.follow(first, marker))
    runs = asyncio.create_task(job.next_lap())
    tasks = (running, following, runs)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if runs.done():
            await runs
        else:
            raise _ended_early(running, following)
        yield job
        if running.done() or following.done():
            raise _ended_early(running, following)
        await first.run(["rm", marker])  # it looks for this between two iterations
        ended = await asyncio.wait_for(running, _END_DEADLINE_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    lines = ended.stdout.splitlines()
    reports = [line for line in lines if line.startswith("{")]
    if len(reports) != 1:
        raise _ended_early(running)
    job.report = msgspec.json.decode(reports[0], type=RingReport)
    job.said = [line for line in lines if line not in reports]


def _ended_early(*tasks: asyncio.Task[object]) -> ExecutionFailed:
    """Say which of the tasks of a ring has ended, and how; one of them has."""
    ended = next(task for task in tasks if task.done())
    cause = ended.exception()
    return ExecutionFailed(
        Slug.COMMAND_FAILED,
        f"The ring ended by itself, or says nothing of itself: {cause or ended.result()}",
        facts=cause.facts if isinstance(cause, KawarimiError) else {},
    )

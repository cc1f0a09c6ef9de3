"""The verified ring program as a running MPI job, for the demonstration and for tests."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence

import msgspec

from kawarimi_testbed.guest import Guest
from kawarimi_testbed.mpi import ETHERNET, mpirun_line
from kawarimi_testbed.payload import COMPONENT_FOLDER
from kawarimi_testbed.testbed import Testbed
from kawarimi_wire.errors import ExecutionFailed, KawarimiError, Slug

_START_DEADLINE_S = 180.0
_END_DEADLINE_S = 60.0
_BLOCK = 16384


class RingReport(msgspec.Struct, frozen=True):
    """What the program says at its end; seconds."""

    iterations: int
    errors: int
    longest_s: float


class Lap(msgspec.Struct, frozen=True):
    """What the program noted about every tenth of a second.

    :ivar at_s: since its start; `iterations`: so far; `longest_s`: the longest one since the lap
        before; `errors`: so far.
    """

    at_s: float
    iterations: int
    longest_s: float
    errors: int


class RingJob:
    """A ring that runs; made by `running_ring`.

    :ivar report: what it said at its end; None before.
    """

    def __init__(self, guest: Guest, marker: str) -> None:
        self.report: RingReport | None = None
        self._guest = guest
        self._marker = marker

    async def laps(self) -> list[Lap]:
        """Return all laps so far."""
        written = await self._guest.run(["cat", self._marker])
        rows = (
            line.split() for line in written.stdout.splitlines(keepends=True) if line[-1] == "\n"
        )
        return [Lap(float(at), int(n), float(longest), int(bad)) for at, n, longest, bad in rows]


@contextlib.asynccontextmanager
async def running_ring(
    testbed: Testbed,
    guests: Sequence[str],
    *,
    ranks_per_guest: int = 1,
    seconds: int = 1800,
    kind: str = "btl",
) -> AsyncIterator[RingJob]:
    """Run the ring over guests, switchable, for as long as the context lasts, then let it end.

    :param seconds: how long it runs at most.
    :param kind: of shim: `btl` or `ucp`.
    :raise ExecutionFailed: `command-failed` if it does not start, or ends by itself, or does not
        say at its end that every byte was right.
    """
    first = testbed.guest(guests[0])
    marker = f"/run/ring-{secrets.token_hex(4)}"  # several may run at once
    line = mpirun_line(
        testbed.topology,
        guests,
        ["ring", str(seconds), str(_BLOCK), marker],
        ranks_per_guest=ranks_per_guest,
    )
    wrapper = ["kawarimi", "run", "--kind", kind, "--include", ETHERNET]
    wrapper += ["--component", COMPONENT_FOLDER, "--"]
    launcher = {
        "OMPI_MCA_plm_rsh_agent": "kawarimi-rsh",
        # The one that is there with any address; UCX looks for others first.
        "OMPI_MCA_mca_base_env_list": "UCX_IB_GID_INDEX=0",
    }
    running = asyncio.create_task(
        first.run([*wrapper, *line], env=launcher, deadline_s=seconds + _END_DEADLINE_S)
    )
    job = RingJob(first, marker)
    try:
        started = asyncio.create_task(
            first.run(f"until [ -s {marker} ]; do sleep 0.05; done", deadline_s=_START_DEADLINE_S)
        )
        await asyncio.wait({running, started}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            started.cancel()
            raise _ended_early(running)
        await started
        yield job
        if running.done():
            raise _ended_early(running)
        await first.run(["rm", marker])  # it looks for this between two iterations
        ended = await asyncio.wait_for(running, _END_DEADLINE_S)
    finally:
        running.cancel()
    job.report = msgspec.json.decode(ended.stdout, type=RingReport)


def _ended_early(running: asyncio.Task[object]) -> ExecutionFailed:
    cause = running.exception()
    facts = cause.facts if isinstance(cause, KawarimiError) else {}
    return ExecutionFailed(
        Slug.COMMAND_FAILED,
        f"The ring ended by itself: {cause or running.result()}",
        facts=facts,
    )

"""`kawarimi demo`: an MPI program computes on while both of its guests move, twice.

From hosts with a fabric to hosts without (fallback), and on to hosts with another one (recovery).
Everything is done by the commands that an operator would use, on a testbed of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from kawarimi_bridge.cli.output import Progress
from kawarimi_testbed.bridge import run_bridge
from kawarimi_testbed.image.build import build_image
from kawarimi_testbed.job import Lap, RingJob, running_ring
from kawarimi_testbed.testbed import Testbed
from kawarimi_testbed.topology import HcaVariant, Topology
from kawarimi_wire.errors import ExecutionFailed, Slug
from kawarimi_wire.phases import Mode, Phase, PhaseState, Result
from kawarimi_wire.record import OperationRecord, PhaseRecord

WAY = ("hostb", "hostc")
"""Where the guests go, one after the other, from the first host."""
_COMPUTE_S = 2.0
"""How long the program computes undisturbed before the first move and after each."""


class DemoPhase(msgspec.Struct, frozen=True):
    """One phase of a move, from when the first guest began it until the last one ended it; seconds.

    :ivar stall_s: the longest of the program's exchanges that were begun in it, or after it and
        before the next one.
    """

    phase: Phase
    state: PhaseState
    duration_s: float
    stall_s: float


class DemoOperation(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """One move of both guests; seconds.

    :ivar stall_s: the longest time that one exchange of the program took meanwhile.
    :ivar gap_s: the longest time that a rank spent in the shim without a break.
    :ivar downtime_s: QEMU's own account, the longest of the guests'.
    """

    operation: str
    from_: str
    to: str
    mode: Mode
    result: Result
    duration_s: float
    phases: tuple[DemoPhase, ...]
    stall_s: float
    gap_s: float
    downtime_s: float


class DemoProgram(msgspec.Struct, frozen=True):
    """What the program says: exchanges done, bytes that were wrong; and how it went undisturbed."""

    iterations: int
    data_errors: int
    undisturbed_stall_s: float


class Demo(msgspec.Struct, frozen=True):
    """The whole demonstration; `reports` are the folders of the operations' reports."""

    operations: tuple[DemoOperation, ...]
    program: DemoProgram
    reports: tuple[str, ...]


async def run_demo(
    progress: Progress, out: Path, *, ranks_per_guest: int, mode: Mode, kind: str, hca: HcaVariant
) -> Demo:
    """Run the demonstration.

    :param kind: of shim: `btl` or `ucp`.
    :param hca: what the guests' HCAs are.
    :param out: the folder for what the operations leave behind, their reports among it.
    :raise KawarimiError: a step failed; nothing of the testbed is left but its logs.
    """
    topology = Topology(name="demo", agents=True, hca=hca)
    image = build_image(progress)
    operations = []
    async with Testbed(topology, image, progress=progress) as testbed:
        guests = topology.guest_names
        async with running_ring(testbed, guests, ranks_per_guest=ranks_per_guest, kind=kind) as job:
            with progress.step("the program computes over the fabric"):
                await asyncio.sleep(_COMPUTE_S)  # which is what it is there for
            undisturbed = max(lap.longest_s for lap in job.laps)
            for host in WAY:
                with progress.step(f"kawarimi migrate {' '.join(guests)} --to {host}"):
                    operations.append(await move(testbed, job, host, mode, out))
                with progress.step("the program computes on"):
                    await asyncio.sleep(_COMPUTE_S)
            with progress.step("the operations' reports"):
                for done in operations:
                    await _bridge(testbed, out, ["report", done.operation])
    assert job.report is not None
    program = DemoProgram(job.report.iterations, job.report.errors, undisturbed)
    reports = tuple(str(out / "operations" / done.operation) for done in operations)
    return Demo(tuple(operations), program, reports)


async def move(testbed: Testbed, job: RingJob, host: str, mode: Mode, out: Path) -> DemoOperation:
    """Have the bridge move all guests under a ring; say what the ring noticed.

    :param out: the folder for what the operation leaves behind.
    :raise ExecutionFailed: `command-failed`, with what the bridge said.
    """
    before = len(job.laps)
    words = ["migrate", *testbed.guests, "--to", host, "--mode", str(mode), "--json"]
    record = msgspec.json.decode(await _bridge(testbed, out, words), type=OperationRecord)
    await job.next_lap()
    laps = job.laps[before:]
    way = record.guests[0].move
    return DemoOperation(
        operation=record.operation,
        from_=way.source,
        to=way.destination,
        mode=record.mode,
        result=record.result,
        duration_s=record.duration_s,
        phases=stalls(record, laps),
        stall_s=max((lap.longest_s for lap in laps), default=0.0),
        gap_s=record.longest_gap_s,
        downtime_s=max(guest.downtime_s or 0.0 for guest in record.guests),
    )


def stalls(record: OperationRecord, laps: Sequence[Lap]) -> tuple[DemoPhase, ...]:
    """Account for what a program noticed of an operation, phase by phase.

    What it noticed after a phase and before the next one counts as the earlier one's.
    """
    began_s = datetime.fromisoformat(record.began).timestamp()
    by_phase = {
        rows[0].phase: rows for rows in zip(*(guest.phases for guest in record.guests), strict=True)
    }
    begun = {
        phase: min(row.started_s for row in rows)
        for phase, rows in by_phase.items()
        if any(row.state is not PhaseState.SKIPPED for row in rows)
    }
    longest = dict.fromkeys(by_phase, 0.0)
    for lap in laps:
        at_s = lap.stalled_from_s - began_s
        before = [phase for phase, start_s in begun.items() if start_s <= at_s]
        if before:
            longest[before[-1]] = max(lap.longest_s, longest[before[-1]])

    def account(phase: Phase, rows: Sequence[PhaseRecord]) -> DemoPhase:
        ended = max(row.started_s + row.duration_s for row in rows)
        lasted = ended - begun[phase] if phase in begun else 0.0
        return DemoPhase(phase, rows[0].state, lasted, longest[phase])

    return tuple(account(phase, rows) for phase, rows in by_phase.items())


async def _bridge(testbed: Testbed, out: Path, words: Sequence[str]) -> bytes:
    """Run a command as the testbed's bridge; return what it prints.

    :raise ExecutionFailed: `command-failed` unless its exit code is 0.
    """
    done = await run_bridge(testbed, out, words)
    if done.exit_code:
        raise ExecutionFailed(
            Slug.COMMAND_FAILED,
            f"'kawarimi {' '.join(words)}' failed with exit code {done.exit_code}.",
            hint=f"see {testbed.logs}",
            facts={"said": done.stderr},
        )
    return done.stdout.encode()

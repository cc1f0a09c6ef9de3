"""Operations for tests of what reads them: real folders below a `KAWARIMI_STATE` of the test."""

from __future__ import annotations

from typing import Any

from kawarimi_bridge.operations import OperationFolder, operations_dir
from kawarimi_wire.errors import ExecutionFailed, Slug
from kawarimi_wire.phases import PHASES, Mode, Phase, PhaseState, Result
from kawarimi_wire.record import (
    Entry,
    GuestRecord,
    Move,
    OperationRecord,
    PhaseRecord,
    RankRow,
    Sample,
    StepRow,
    SwitchRow,
)

FORWARD = Move("vm1", "hosta", "hostb", "fabrica", "")
ONWARD = Move("vm1", "hostb", "hostc", "", "fabricc")


def folder(operation: str) -> OperationFolder:
    return OperationFolder(operations_dir() / operation)


def phases(**others: PhaseState) -> tuple[PhaseRecord, ...]:
    """Return every phase, a second each, done but for those named."""
    return tuple(
        PhaseRecord(row.phase, others.get(row.phase, PhaseState.DONE), float(start), 1.0)
        for start, row in enumerate(PHASES)
    )


def record(operation: str, **fields: Any) -> OperationFolder:
    """Write a record: one guest that moved well, unless the fields say otherwise."""
    written: dict[str, Any] = {
        "operation": operation,
        "command": "migrate",
        "mode": Mode.LIVE,
        "began": "2026-01-02T03:04:05Z",
        "duration_s": 9.0,
        "result": Result.COMPLETED,
        "guests": (GuestRecord(FORWARD, phases(), 0.048, 0.95, 312_400_000, (5.5, 5.548)),),
        "switches": (
            SwitchRow(
                "4711",
                "tcp",
                1.0,
                2.0,
                (StepRow("prepare", 1.0, 0.75, 0.004), StepRow("drain", 1.75, 0.25, 0.002)),
                (RankRow(0, 0.006, 0.0041), RankRow(1, 0.005, 0.0032)),
            ),
        ),
        **fields,
    }
    made = folder(operation)
    made.folder.mkdir(parents=True)
    made.write_record(OperationRecord(**written))
    return made


def samples(made: OperationFolder, *, guest: str = "vm1") -> None:
    """Sample a guest twice a second: 100 MB/s on the fabric for 3 s, then 10 MB/s of Ethernet."""
    for half in range(19):
        at_s = half / 2
        fabric = int(min(at_s, 3.0) * 100e6) if at_s < 5 else 0
        made.write_sample(Sample(at_s, guest, int(max(at_s - 3.0, 0.0) * 10e6), fabric))


def rolled_back(operation: str) -> OperationFolder:
    """Write the record of an operation that failed in UNPLUG and was undone."""
    error = ExecutionFailed(
        Slug.UNPLUG_TIMEOUT,
        "The guest vm1 did not let its HCA go.",
        untouched="the job runs on openib",
        hint="look at its console",
        facts={"waited_s": 60},
    )
    undone = PhaseState.UNDONE
    names = {Phase.DRAIN: undone, Phase.RELEASE: undone, Phase.UNPLUG: PhaseState.FAILED}
    return record(
        operation,
        result=Result.ROLLED_BACK,
        guests=(GuestRecord(FORWARD, phases(**names)[:5]),),
        error=error.as_dict(),
    )


def journal(operation: str) -> OperationFolder:
    """Write the journal of an operation that was killed 0.5 s into UNPLUG."""
    made = folder(operation)
    made.write_entry(
        Entry(
            0.0,
            what="begun",
            facts={"command": "migrate", "mode": "live", "moves": [FORWARD]},
        )
    )
    at_s = 1.0
    for row in PHASES[:4]:
        made.write_entry(Entry(at_s, row.phase, PhaseState.RUNNING))
        made.write_entry(Entry(at_s + 1.0, row.phase, PhaseState.DONE))
        at_s += 1.0
    made.write_entry(Entry(at_s, Phase.UNPLUG, PhaseState.RUNNING, "vm1"))
    made.write_entry(Entry(at_s + 0.5, guest="vm1", what="device_del", facts={"id": "hca0"}))
    return made

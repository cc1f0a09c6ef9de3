"""The phases of a migration: the one table that code, command line, documents and tests read.

::

    notice → preflight → prepare → drain → release → unplug → migrate → plug → reprobe → reselect

Everything before the source QEMU says `completed` (the point of no return, within MIGRATE) can be
undone; from there on the only way is forward, on the fallback if need be.
"""

from __future__ import annotations

import enum

import msgspec


class Phase(enum.StrEnum):
    """A phase, by its name."""

    PREFLIGHT = "preflight"
    PREPARE = "prepare"
    DRAIN = "drain"
    RELEASE = "release"
    UNPLUG = "unplug"
    MIGRATE = "migrate"
    PLUG = "plug"
    REPROBE = "reprobe"
    RESELECT = "reselect"


class PhaseSpec(msgspec.Struct, frozen=True):
    """One row of the table.

    :ivar actors: who acts.
    :ivar proof: what proves it done.
    :ivar undo: how it is undone; empty if there is nothing to undo, or no way back.
    :ivar deadline_s: seconds it may take, unless the operator says otherwise.
    :ivar forward_only: whether a failure in it leaves the job on the fallback instead of where it
        was.
    """

    phase: Phase
    actors: str
    proof: str
    undo: str
    deadline_s: float
    forward_only: bool = False


PHASES: tuple[PhaseSpec, ...] = (
    PhaseSpec(
        Phase.PREFLIGHT,
        "bridge, agents",
        "every rank of every affected job has said hello; fabric and fallback are usable; both "
        "hypervisors answer; the destination fits; nothing was touched",
        "",
        30.0,
    ),
    PhaseSpec(
        Phase.PREPARE,
        "bridge, agents, ranks",
        "a QEMU waits for each guest on its destination; every rank has endpoints on the fallback "
        "for every peer",
        "end the QEMUs that wait",
        30.0,
    ),
    PhaseSpec(
        Phase.DRAIN,
        "agents, ranks",
        "new traffic goes over the fallback; two equal waves with sent = received on the fabric, "
        "and nothing outstanding",
        "select the fabric again",
        30.0,
    ),
    PhaseSpec(
        Phase.RELEASE,
        "agents, ranks",
        "the component is closed; no queue pair, descriptor or mapping of the device is left",
        "open the fabric again",
        30.0,
    ),
    PhaseSpec(
        Phase.UNPLUG,
        "bridge",
        "DEVICE_DELETED, and the device is gone when asked again",
        "plug on the source, take the fabric again",
        60.0,
    ),
    PhaseSpec(
        Phase.MIGRATE,
        "bridge",
        "the source says completed, the destination runs",
        "cancel; the source runs on",
        600.0,
    ),
    PhaseSpec(
        Phase.PLUG,
        "bridge",
        "the device is present on the destination, and its agent sees it",
        "",
        120.0,
        forward_only=True,
    ),
    PhaseSpec(
        Phase.REPROBE,
        "agents",
        "port ACTIVE, address present, and a real message has crossed between the guests",
        "",
        90.0,
        forward_only=True,
    ),
    PhaseSpec(
        Phase.RESELECT,
        "agents, ranks",
        "every rank reports the fabric in use",
        "",
        60.0,
        forward_only=True,
    ),
)


def spec(phase: Phase) -> PhaseSpec:
    """Return a phase's row."""
    return next(row for row in PHASES if row.phase is phase)


class PhaseState(enum.StrEnum):
    """How a phase stands, or ended."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"
    """It does not apply: nothing was there to be done."""
    FAILED = "failed"
    UNDONE = "undone"
    """It had been done, and was taken back by the rollback."""


class Result(enum.StrEnum):
    """How an operation ended; the exit code follows from it."""

    COMPLETED = "completed"
    """The guests have moved, and the jobs are on the best that their new places have."""
    DEGRADED = "degraded"
    """The guests have moved, and a job that should be on a fabric is on the fallback."""
    ROLLED_BACK = "rolled-back"
    """The guests are where they were, and the jobs run as they did."""
    NEEDS_CLEANUP = "needs-cleanup"
    """Something is left behind that the record names."""


class Mode(enum.StrEnum):
    """What the jobs do between RELEASE and RESELECT."""

    LIVE = "live"
    """They compute on the fallback."""
    FROZEN = "frozen"
    """Their ranks are held at a safe point, the fallback drained."""

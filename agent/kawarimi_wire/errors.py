"""The error tree of kawarimi, and the exit codes that the command line gives them.

::

    KawarimiError
    ├── UsageError          2  the request or the configuration is wrong; nothing was begun
    ├── PreflightRefused    3  a precondition does not hold; nothing was touched
    ├── ExecutionFailed     1  something failed on the way, and what was done has been undone
    │   ├── OutcomeUnknown  1  a side effect was requested and no answer came in time: ask again
    │   └── Interrupted   130  the operator ended it, and what was done has been undone
    └── NeedsCleanup        5  something failed, and something is left behind that is named

An error is part of the interface. It carries a stable `Slug` to match on, what happened, what is
untouched, what to do next, and the facts that were known at that moment. Callers match on the class
to learn what state they are in, and on the slug to learn why.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class ExitCode(enum.IntEnum):
    """Exit codes of every `kawarimi` command."""

    COMPLETED = 0
    """Done as asked."""
    FAILED = 1
    """Failed and rolled back: the job runs where and as it did."""
    USAGE = 2
    """The command line or the configuration is wrong."""
    REFUSED = 3
    """Preflight refused; nothing was touched."""
    DEGRADED = 4
    """Completed, but the job stays on the fallback."""
    NEEDS_CLEANUP = 5
    """Something is left behind; the message names it."""
    INTERRUPTED = 130
    """Interrupted by the operator and rolled back."""


class Scope(enum.StrEnum):
    """The largest thing that an error affects, smallest first."""

    RANK = "rank"
    DEVICE = "device"
    GUEST = "guest"
    JOB = "job"
    HOST = "host"


class Slug(enum.StrEnum):
    """Every error's stable name. Scripts may match on these; they are never reused."""

    BAD_USAGE = "bad-usage"
    BAD_CONFIGURATION = "bad-configuration"
    INTERNAL = "internal"
    INTERRUPTED = "interrupted"

    # This machine.
    NOT_ROOT = "not-root"
    PROGRAM_MISSING = "program-missing"
    LIBRARY_MISSING = "library-missing"
    PACKAGE_LISTS_MISSING = "package-lists-missing"
    NO_SPACE = "no-space"
    CACHE_CORRUPT = "cache-corrupt"
    CACHE_BUSY = "cache-busy"
    BUILD_FAILED = "build-failed"

    # The testbed.
    TESTBED_EXISTS = "testbed-exists"
    TESTBED_NOT_RUNNING = "testbed-not-running"
    TESTBED_START_FAILED = "testbed-start-failed"
    NAMESPACE_IN_USE = "namespace-in-use"
    UNKNOWN_GUEST = "unknown-guest"
    UNKNOWN_HOST = "unknown-host"
    GUEST_NOT_READY = "guest-not-ready"
    GUEST_UNREACHABLE = "guest-unreachable"
    COMMAND_FAILED = "command-failed"
    COMMAND_TIMEOUT = "command-timeout"

    # QEMU and its monitor.
    QEMU_START_FAILED = "qemu-start-failed"
    QEMU_GONE = "qemu-gone"
    QMP_UNREACHABLE = "qmp-unreachable"
    QMP_REFUSED = "qmp-refused"
    QMP_TIMEOUT = "qmp-timeout"

    # The HCA.
    HCA_ABSENT = "hca-absent"
    HCA_PRESENT = "hca-present"
    HCA_SLOT_MISSING = "hca-slot-missing"
    HCA_SLOT_OCCUPIED = "hca-slot-occupied"
    HCA_ATTACHED = "hca-attached"
    HCA_NOT_READY = "hca-not-ready"
    HCA_UNUSABLE = "hca-unusable"
    PLUG_REFUSED = "plug-refused"
    UNPLUG_REFUSED = "unplug-refused"
    UNPLUG_TIMEOUT = "unplug-timeout"

    # The migration.
    MIGRATION_BUSY = "migration-busy"
    MIGRATION_LISTEN_FAILED = "migration-listen-failed"
    MIGRATION_FAILED = "migration-failed"
    MIGRATION_CANCELLED = "migration-cancelled"
    MIGRATION_TIMEOUT = "migration-timeout"
    SPLIT_BRAIN_REFUSED = "split-brain-refused"

    # The guest agent.
    AGENT_VERSION = "agent-version"
    AGENT_KEYS = "agent-keys"
    DEVICE_HELD = "device-held"
    UNKNOWN_DEVICE = "unknown-device"
    UNKNOWN_PROBE = "unknown-probe"
    FABRIC_UNREACHABLE = "fabric-unreachable"

    # An operation on guests.
    GUEST_BUSY = "guest-busy"
    DESTINATION_TOO_SMALL = "destination-too-small"
    UNKNOWN_OPERATION = "unknown-operation"
    OPERATION_DAMAGED = "operation-damaged"
    OPERATION_RUNNING = "operation-running"
    NOTHING_TO_RECOVER = "nothing-to-recover"

    # The rank shim and its steps.
    UNKNOWN_JOB = "unknown-job"
    UNKNOWN_BTL = "unknown-btl"
    AGENT_UNREACHABLE = "agent-unreachable"
    AGENT_CANNOT_LISTEN = "agent-cannot-listen"
    JOB_INCOMPLETE = "job-incomplete"
    JOB_NOT_SWITCHABLE = "job-not-switchable"
    JOB_BUSY = "job-busy"
    JOB_NOT_YOURS = "job-not-yours"
    STEP_REFUSED = "step-refused"
    RANK_NOT_REACHED = "rank-not-reached"
    RANK_GONE = "rank-gone"
    DRAIN_TIMEOUT = "drain-timeout"
    NO_ROOM = "no-room-for-messages"
    DEFERRED_BY_PROGRAM = "deferred-by-program"
    HOLD_LOST = "hold-lost"
    FABRIC_ABSENT = "fabric-absent"
    SWITCH_UNFINISHED = "switch-unfinished"
    OPEN_MPI_MISSING = "open-mpi-missing"
    OPEN_MPI_UNSUPPORTED = "open-mpi-unsupported"
    COMPONENT_MISSING = "component-missing"
    SHIM_NOT_LOADED = "shim-not-loaded"
    NOT_SWITCHABLE_LAUNCH = "not-switchable-launch"


class KawarimiError(Exception):
    """An error that says what happened, what is untouched and what to do.

    :param slug: the stable name of the error.
    :param what: what happened, one sentence.
    :param untouched: what has not changed, or was restored; empty if there is nothing to say.
    :param hint: what to do next; empty if there is nothing to do.
    :param scope: the largest thing that is affected.
    :param facts: what was known at that moment, by name; values must be JSON.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(
        self,
        slug: Slug,
        what: str,
        *,
        untouched: str = "",
        hint: str = "",
        scope: Scope = Scope.HOST,
        facts: dict[str, object] | None = None,
    ) -> None:
        super().__init__(what)
        self.slug = slug
        self.what = what
        self.untouched = untouched
        self.hint = hint
        self.scope = scope
        self.facts: dict[str, object] = dict(facts or {})

    def as_dict(self) -> dict[str, object]:
        """Return the error as the object that `--json` prints under the key `error`."""
        return {
            "slug": str(self.slug),
            "scope": str(self.scope),
            "what": self.what,
            "untouched": self.untouched,
            "hint": self.hint,
            "facts": self.facts,
            "exit_code": int(self.exit_code),
        }

    def __str__(self) -> str:
        return f"[{self.slug}] {self.what}"


class UsageError(KawarimiError):
    """The request or the configuration is wrong; nothing was begun."""

    exit_code = ExitCode.USAGE


class PreflightRefused(KawarimiError):
    """A precondition does not hold; nothing was touched."""

    exit_code = ExitCode.REFUSED


class ExecutionFailed(KawarimiError):
    """Something failed on the way; what had been done was undone."""


class OutcomeUnknown(ExecutionFailed):
    """A side effect was requested and no answer came in time.

    The state is neither the old nor the new one until somebody asks: the caller must query.
    """


class Interrupted(ExecutionFailed):
    """The operator ended the operation; what had been done was undone."""

    exit_code = ExitCode.INTERRUPTED


class Degraded(KawarimiError):
    """Every guest is where it should be; a job stays on the fallback, and could do better."""

    exit_code = ExitCode.DEGRADED


class NeedsCleanup(KawarimiError):
    """Something failed, and something is left behind, which the error names."""

    exit_code = ExitCode.NEEDS_CLEANUP

"""What the coordinator needs of a hypervisor, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kawarimi_bridge.hca import Unplugged
from kawarimi_bridge.migration import MigrationProgress, MigrationResult
from kawarimi_bridge.migration_parameters import MigrationParameters


class Hypervisor(Protocol):
    """Guests on hosts. Every method raises `KawarimiError` and says what is untouched."""

    async def locate(self, guest: str) -> str:
        """Return the host on which a guest runs, by asking, not by what was written down."""

    async def attached(self, guest: str) -> str | None:
        """Return the id of the HCA that a guest holds now; None without one."""

    async def check_destination(self, guests: Sequence[str], host: str) -> None:
        """Refuse a destination that cannot take these guests: memory, a leftover, no answer."""

    async def start_destination(self, guest: str, host: str) -> None:
        """Make a place for the guest on a host, which waits for it."""

    async def discard_destination(self, guest: str, host: str) -> None:
        """Remove a place that the guest has not come to. Idempotent."""

    async def unplug(self, guest: str, deadline_s: float) -> Unplugged:
        """Take the HCA from the guest; the hypervisor no longer has it when this returns."""

    async def plug(self, guest: str, deadline_s: float) -> None:
        """Give the guest the HCA that it gets on its host; it is in its slot when this returns."""

    async def migrate(
        self,
        guest: str,
        host: str,
        parameters: MigrationParameters,
        deadline_s: float,
        on_progress: Callable[[MigrationProgress], None],
    ) -> MigrationResult:
        """Move the guest to the place that waits for it; it runs there when this returns.

        If it raises, the guest runs on where it was, unless it is a `NeedsCleanup`. A cancelled
        task cancels the migration; where that comes too late, the guest has moved (`locate`).
        """

    async def close(self) -> None:
        """Let go of all guests; they run on."""

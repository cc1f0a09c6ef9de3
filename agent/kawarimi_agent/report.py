"""What a switch reports: one record per operation, complete also when it failed."""

from __future__ import annotations

import msgspec


class RankFigures(msgspec.Struct, frozen=True):
    """One rank's share of a switch; times in seconds.

    :ivar stall_s: time in the shim, in the rank's thread, during this switch.
    :ivar longest_gap_s: the longest time without a break in it: the rank could do nothing else.
    """

    vpid: int
    stall_s: float
    longest_gap_s: float


class StepRecord(msgspec.Struct, frozen=True):
    """One named barrier; times in seconds.

    :ivar started_s: since the switch began.
    :ivar duration_s: until the last rank had answered.
    :ivar rank_s: the longest time that a rank's thread spent in it.
    :ivar waves: how often it was repeated.
    """

    name: str
    started_s: float
    duration_s: float
    rank_s: float
    waves: int


class SwitchReport(msgspec.Struct, frozen=True):
    """One switch of one job.

    :ivar to: the name of the BTL that carries the job afterwards.
    :ivar changed: False if that was so already, and nothing was done.
    """

    job: str
    to: str
    changed: bool
    epoch: int
    duration_s: float
    steps: tuple[StepRecord, ...]
    ranks: tuple[RankFigures, ...]


class HoldReport(msgspec.Struct, frozen=True):
    """How a job came to be held; times in seconds."""

    job: str
    epoch: int
    duration_s: float
    steps: tuple[StepRecord, ...]

"""Rates from samples: how fast each guest sent and received, over each of its networks."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from kawarimi_wire.record import Sample

NETWORKS = ("fabric", "ethernet")
"""The networks that a sample counts, by the names of its fields."""


@dataclass(frozen=True)
class Traffic:
    """What one guest has sent and received over one network since its first sample.

    :ivar at_s: when it was sampled, rising.
    :ivar total: bytes until then, never falling.
    """

    guest: str
    network: str
    at_s: Sequence[float]
    total: Sequence[float]

    def rates(self) -> list[float]:
        """Return bytes per second between each sample and the next."""
        spans = zip(itertools.pairwise(self.total), itertools.pairwise(self.at_s), strict=True)
        return [(after - before) / (end - begin) for (before, after), (begin, end) in spans]

    def mean_rate(self, begin_s: float, end_s: float) -> float | None:
        """Return bytes per second in an interval; None where none of it was sampled."""
        begin_s, end_s = max(begin_s, self.at_s[0]), min(end_s, self.at_s[-1])
        if begin_s >= end_s:
            return None
        return (self._total_at(end_s) - self._total_at(begin_s)) / (end_s - begin_s)

    def _total_at(self, at_s: float) -> float:
        """Return the bytes until a moment within the samples, straight between two of them."""
        after = max(bisect.bisect_left(self.at_s, at_s), 1)
        begin, end = self.at_s[after - 1], self.at_s[after]
        share = (at_s - begin) / (end - begin)
        return self.total[after - 1] + share * (self.total[after] - self.total[after - 1])


def traffic(samples: Sequence[Sample]) -> list[Traffic]:
    """Return the traffic of each guest over each network; of guests sampled once there is none."""
    found = []
    for guest in sorted({sample.guest for sample in samples}):
        rows = {sample.at_s: sample for sample in samples if sample.guest == guest}
        at_s = sorted(rows)
        if len(at_s) > 1:
            for network in NETWORKS:
                counted = [getattr(rows[moment], network) for moment in at_s]
                found.append(Traffic(guest, network, at_s, _rising(counted)))
    return found


def _rising(counted: Sequence[int]) -> list[float]:
    """Return totals of a counter that begins at 0 again whenever its device is another one."""
    steps = (after - before if after >= before else after
             for before, after in itertools.pairwise(counted))  # fmt: skip
    return list(itertools.accumulate(steps, initial=0.0))

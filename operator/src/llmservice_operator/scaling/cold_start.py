"""The time from the creation of a replica until it is Ready: a high percentile of recent times."""

import math
from dataclasses import dataclass

from llmservice_operator.api.calibration import COLD_STARTS_KEPT

DEFAULT_SECONDS = 120.0
PERCENTILE = 0.9
LONGEST_SECONDS = 3600.0
"""Longest time in seconds that counts as a cold start. It is enough to add a node and to download
and load a large model."""


@dataclass(frozen=True, slots=True)
class ColdStarts:
    """The last cold starts, oldest first."""

    seconds: tuple[float, ...] = ()

    def add(self, seconds: float) -> "ColdStarts":
        """Add one cold start, unless it took longer than LONGEST_SECONDS.

        A pod that took longer waited for a free node or for a repair.
        """
        if seconds > LONGEST_SECONDS:
            return self
        return ColdStarts((*self.seconds, seconds)[-COLD_STARTS_KEPT:])

    @property
    def estimate(self) -> float:
        """Seconds within which nine of ten replicas became Ready.

        DEFAULT_SECONDS while no cold start is known.
        """
        if not self.seconds:
            return DEFAULT_SECONDS
        ordered = sorted(self.seconds)
        return ordered[max(math.ceil(PERCENTILE * len(ordered)) - 1, 0)]

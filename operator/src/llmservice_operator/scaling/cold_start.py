"""The time from a new pod to a Ready one: a high percentile of the last cold starts."""

import math
from dataclasses import dataclass

from llmservice_operator.api.calibration import COLD_STARTS_KEPT

DEFAULT_SECONDS = 120.0
PERCENTILE = 0.9
LONGEST_SECONDS = 3600.0
"""More than a new node, a download of a large model and its load take together."""


@dataclass(frozen=True, slots=True)
class ColdStarts:
    """The last cold starts, oldest first."""

    seconds: tuple[float, ...] = ()

    def add(self, seconds: float) -> "ColdStarts":
        """Add one, unless it is too long to be one: the pod waited for room, or for a repair."""
        if seconds > LONGEST_SECONDS:
            return self
        return ColdStarts((*self.seconds, seconds)[-COLD_STARTS_KEPT:])

    @property
    def estimate(self) -> float:
        """Seconds within which nine of ten replicas became Ready."""
        if not self.seconds:
            return DEFAULT_SECONDS
        ordered = sorted(self.seconds)
        return ordered[max(math.ceil(PERCENTILE * len(ordered)) - 1, 0)]

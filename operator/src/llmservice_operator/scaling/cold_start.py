"""How long it takes from a new pod to a Ready one: a high percentile of what was seen."""

import math
from dataclasses import dataclass

from llmservice_operator.api.calibration import COLD_STARTS_KEPT

DEFAULT_SECONDS = 120.0
PERCENTILE = 0.9
LONGEST_SECONDS = 3600.0
"""A new node, a large model from the hub and its load together take less."""


@dataclass(frozen=True, slots=True)
class ColdStarts:
    """The last cold starts, oldest first."""

    seconds: tuple[float, ...] = ()

    def add(self, seconds: float) -> "ColdStarts":
        """Remember one, unless it was none: hours were spent waiting for room, or on a repair."""
        if seconds > LONGEST_SECONDS:
            return self
        return ColdStarts((*self.seconds, seconds)[-COLD_STARTS_KEPT:])

    @property
    def estimate(self) -> float:
        """Seconds within which nine of ten pods were Ready."""
        if not self.seconds:
            return DEFAULT_SECONDS
        ordered = sorted(self.seconds)
        return ordered[max(math.ceil(PERCENTILE * len(ordered)) - 1, 0)]

"""The time that a replica needs until it is Ready: to get a node, and to start on it."""

import math
from dataclasses import dataclass
from statistics import median_low

from llmservice_operator.api.calibration import COLD_STARTS_KEPT

DEFAULT_SECONDS = 120.0
PERCENTILE = 0.9
LONGEST_SECONDS = 3600.0
"""Longest time in seconds that counts as a cold start or as a wait for a node. It is enough to add
a node, and to download and load a large model."""


@dataclass(frozen=True, slots=True)
class ColdStarts:
    """The last cold starts and waits for a node, oldest first."""

    seconds: tuple[float, ...] = ()
    """Times from the assignment of a node until the replica was Ready."""
    waits: tuple[float, ...] = ()
    """Times from the creation of the replica until the assignment of a node."""

    def add(self, created: float, scheduled: float, ready: float) -> "ColdStarts":
        """Add a replica that is Ready. Times longer than LONGEST_SECONDS are left out, because they
        end with a repair.
        """
        return ColdStarts(
            _with(self.seconds, ready - scheduled), _with(self.waits, scheduled - created)
        )

    @property
    def estimate(self) -> float:
        """Seconds within which nine of ten replicas with a node became Ready.

        DEFAULT_SECONDS while no cold start is known.
        """
        return _high(self.seconds) if self.seconds else DEFAULT_SECONDS

    @property
    def longest_start(self) -> float:
        """Seconds from the creation of a replica until it is Ready, which few replicas exceed.

        Replicas that must be ready at a certain time are often the first ones on a node pool that
        has emptied at night. Their waits for a node are then the longest ones.
        """
        return self.estimate + (_high(self.waits) if self.waits else 0.0)

    @property
    def last(self) -> float | None:
        """Seconds from the creation of the last replica that became Ready until it was Ready. None
        while no start is known.
        """
        waits = self.waits[-1] if self.waits else 0.0
        return waits + self.seconds[-1] if self.seconds else None

    @property
    def node_wait(self) -> float:
        """Seconds for which a replica usually waits for a node: the median, because one long wait
        for free GPUs says nothing about the next. 0 while no wait is known.
        """
        return median_low(self.waits) if self.waits else 0.0


def _high(known: tuple[float, ...]) -> float:
    """Return the PERCENTILE of the numbers."""
    ordered = sorted(known)
    return ordered[max(math.ceil(PERCENTILE * len(ordered)) - 1, 0)]


def _with(known: tuple[float, ...], seconds: float) -> tuple[float, ...]:
    if seconds > LONGEST_SECONDS:
        return known
    return (*known, max(seconds, 0.0))[-COLD_STARTS_KEPT:]

"""Remembers requests that end replicas, so that one request cannot end all of them."""

from collections import OrderedDict
from typing import Final

REFUSED_SECONDS: Final = 600.0
MAX_DEATHS: Final = 2
"""Number of replicas that a request may end before it is refused."""
MAX_REMEMBERED: Final = 10_000


class DeadlyRequests:
    """A mapping from the digest of a request's body to the number of replicas that it ended."""

    def __init__(self, capacity: int = MAX_REMEMBERED) -> None:
        """`capacity` is the maximum number of requests; the oldest one is forgotten first."""
        self._capacity = capacity
        self._deaths: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._deaths)

    def add(self, digest: bytes, deaths: int, now: float) -> bool:
        """Note that a request ended `deaths` more replicas. Return whether it is refused now."""
        known, _ = self._current(digest, now)
        self._deaths[digest] = (known + deaths, now + REFUSED_SECONDS)
        self._deaths.move_to_end(digest)
        while len(self._deaths) > self._capacity:
            self._deaths.popitem(last=False)
        return known + deaths >= MAX_DEATHS

    def seconds_refused(self, digest: bytes, now: float) -> float:
        """Return for how many more seconds a request is refused; 0 if it is not."""
        deaths, until = self._current(digest, now)
        return until - now if deaths >= MAX_DEATHS else 0.0

    def refused(self, now: float) -> list[tuple[bytes, float]]:
        """Return the digests of the refused requests, and for how many more seconds each one is
        refused. The most recent one is last.
        """
        return [
            (digest, until - now)
            for digest, (deaths, until) in self._deaths.items()
            if deaths >= MAX_DEATHS and now < until
        ]

    def _current(self, digest: bytes, now: float) -> tuple[int, float]:
        deaths, until = self._deaths.get(digest, (0, 0.0))
        return (deaths, until) if now < until else (0, 0.0)

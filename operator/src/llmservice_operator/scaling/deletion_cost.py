"""The order in which replicas are removed: the emptiest first, then the coldest cache."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

NEAR = 0.3
"""A removal is near when the load needs this many replicas fewer than there are, or more."""

REQUESTS_PER_BUCKET = 4
PERCENT_PER_BUCKET = 10
"""Smaller differences of load do not change a cost, so that costs seldom change."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """The work that removing one Ready replica would lose."""

    replica: str
    """Name of the replica."""
    running_requests: int
    kv_cache_percent: float


def is_removal_near(needed: float, replicas: int, min_replicas: int) -> bool:
    """Return whether a load of `needed` replicas will soon let one be removed."""
    return replicas > min_replicas and needed < replicas - NEAR


def deletion_costs(replicas: Iterable[Occupancy]) -> dict[str, int]:
    """Return the cost of deleting each replica, by its name; the cheapest is deleted first."""
    return {
        each.replica: 1000 * math.ceil(each.running_requests / REQUESTS_PER_BUCKET)
        + 10 * math.ceil(each.kv_cache_percent / PERCENT_PER_BUCKET)
        for each in replicas
    }

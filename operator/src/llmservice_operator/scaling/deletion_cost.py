"""Which replica is to go first when there is one too many: the emptiest, with the coldest cache."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

NEAR = 0.3
"""Replicas by which the load must be below the present number for a removal to be near."""

REQUESTS_PER_BUCKET = 4
PERCENT_PER_BUCKET = 10
"""Loads that differ by less cost the same, so that costs seldom change."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What one Ready replica would lose."""

    pod: str
    running_requests: int
    kv_cache_percent: float


def is_removal_near(needed: float, replicas: int, min_replicas: int) -> bool:
    """Whether the load, in `needed` replicas, lets one go soon."""
    return replicas > min_replicas and needed < replicas - NEAR


def deletion_costs(replicas: Iterable[Occupancy]) -> dict[str, int]:
    """Return the cost of each pod's deletion; the ReplicaSet deletes the cheapest first."""
    return {
        each.pod: 1000 * math.ceil(each.running_requests / REQUESTS_PER_BUCKET)
        + 10 * math.ceil(each.kv_cache_percent / PERCENT_PER_BUCKET)
        for each in replicas
    }

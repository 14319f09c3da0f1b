"""The order in which replicas are removed.

The replica with the fewest running requests is removed first. Among replicas with equally many
requests, it is the one with the least used KV cache. Both amounts are compared in coarse steps.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

NEAR = 0.3
"""Number of surplus replicas above which a removal is near."""

REQUESTS_PER_BUCKET = 4
PERCENT_PER_BUCKET = 10
"""Sizes of the steps in which a cost follows the load: a number of requests, and a percentage of
the KV cache. Because of the steps, costs seldom change."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """The work that removing one Ready replica would lose."""

    replica: str
    """Name of the replica."""
    running_requests: int
    kv_cache_percent: float


def is_removal_near(needed: float, replicas: int, min_replicas: int) -> bool:
    """Return whether a load that needs `needed` replicas is close to the removal of a replica."""
    return replicas > min_replicas and needed < replicas - NEAR


def deletion_costs(replicas: Iterable[Occupancy]) -> dict[str, int]:
    """Return a mapping from the name of each replica to the cost of deleting the replica.

    The replica with the lowest cost is deleted first.
    """
    return {
        each.replica: 1000 * math.ceil(each.running_requests / REQUESTS_PER_BUCKET)
        + 10 * math.ceil(each.kv_cache_percent / PERCENT_PER_BUCKET)
        for each in replicas
    }

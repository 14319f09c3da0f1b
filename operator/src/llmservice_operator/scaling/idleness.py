"""For how long nobody has needed a service, and how many replicas the first requests need.

A number that is unknown is never a sign of idleness. A lost report hides no request, because the
counters of the next one contain it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmservice_operator.scaling.demand import SHORTEST_DRAIN_SECONDS
from llmservice_operator.scaling.signals import ReplicaReport, Scrape, Snapshot


@dataclass(frozen=True, slots=True)
class Idleness:
    """Idleness of one service, from one scrape to the next."""

    seconds: float | None = None
    """Seconds for which nobody has needed the service. None without a router, while a replica or a
    router pod does not say whether it has requests, and with an old router."""
    needed_at: float | None = None
    """Time of the last scrape at which somebody needed the service. The first scrape counts as such
    a time, because nothing is known about the time before it. None before the first scrape."""
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)
    """Last report of each replica."""
    has_old_router: bool = False
    """Whether a router pod is too old to tell of the request that would wake the service."""

    def add(self, scrape: Scrape) -> "Idleness":
        """Return the idleness after a scrape.

        A request that waits or runs, a replica that starts and an adapter that is being loaded show
        that somebody needs the service.
        """
        needed_at = self.needed_at
        routers = [it.snapshot for it in scrape.routers if it.snapshot is not None]
        holds = any(it.held for it in routers)
        has_old_router = not all(it.can_be_watched for it in routers)
        if needed_at is None or holds or any(map(self._is_needed, scrape.replicas)):
            needed_at = scrape.at
        is_known = (
            0 < len(routers) == len(scrape.routers)
            and not has_old_router
            and all(
                it.snapshot is not None or not it.is_ready or it.is_draining
                for it in scrape.replicas
            )
        )
        return Idleness(
            scrape.at - needed_at if is_known else None,
            needed_at,
            {
                it.name: found
                for it in scrape.replicas
                if (found := it.snapshot or self.snapshots.get(it.name)) is not None
            },
            has_old_router,
        )

    def _is_needed(self, replica: ReplicaReport) -> bool:
        now, before = replica.snapshot, self.snapshots.get(replica.name)
        if not replica.is_ready and not replica.is_draining:
            return True  # it starts, and tests itself, because somebody needs it
        if now is None:
            return False
        arrived = before is None or now.has_arrivals_since(before)
        return arrived or now.running > 0 or now.waiting > 0 or replica.is_loading_adapter


def held_percent(held_requests: int, capacity: float | None, cold_start_seconds: float) -> float:
    """Return the demand of held requests in percent of one replica.

    As in the demand of a service with replicas, the requests must start within one cold start.
    A request needs at most one replica. `capacity` is the number of requests per second that a
    replica sustains; None if it is unknown. One replica then learns it, and so it does if the
    number is impossible.
    """
    if not held_requests:
        return 0.0
    started = (
        0.0 if capacity is None else capacity * max(SHORTEST_DRAIN_SECONDS, cold_start_seconds)
    )
    if not 0 < started < math.inf:
        return 1.0
    return 100 * held_requests / max(started, 1.0)


def woken_replicas(load: float, target: float, least: int, most: int) -> int:
    """Return the number of replicas with which a service without replicas starts again.

    `load` and `target` have the same unit. Without any load, the result is 0.
    """
    if load <= 0:
        return 0
    return min(max(math.ceil(min(load / target, most)), least, 1), most)


def may_rest(idle_seconds: float | None, after_seconds: float) -> bool:
    """Return whether a service may lose its last replicas."""
    return idle_seconds is not None and idle_seconds >= after_seconds

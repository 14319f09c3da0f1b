"""Follows the requests that wait in the routers of a service.

A waiting request has arrived, but no replica has counted it yet. When a router sends it to a
replica, the replica counts it, and the router holds one request less. A request that ends its wait
without a replica has arrived all the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from llmservice_operator.scaling.signals import HoldCounters, RouterSnapshot, Scrape

HELD_SECONDS: Final = 60.0
"""Time in seconds for which the last report of a router is assumed to be still right."""


class Arrivals(NamedTuple):
    """Requests that arrived at a router in a time span, and that no replica has counted.

    Negative if the router sent more requests to the replicas than arrived.
    """

    at: float
    seconds: float
    requests: float
    given_up: float = 0.0
    """Further requests that the router refused, or whose clients left before the hold timeout."""


@dataclass(frozen=True, slots=True)
class HeldRequests:
    """The last report of each router pod, by its name."""

    routers: Mapping[str, RouterSnapshot] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Number of the requests that wait in all routers."""
        return sum(each.held for each in self.routers.values())

    def add(
        self, scrape: Scrape, last_scrape: float, replica_arrivals: float
    ) -> tuple["HeldRequests", list[Arrivals]]:
        """Add a scrape; return the arrivals since the last one.

        `replica_arrivals` is the usual rate of the replicas' arrivals per second. Requests that
        were given up count at most as many as all other arrivals of the same time. Otherwise a
        client that repeats refused requests without a pause could demand any number of replicas.

        The first report of an older router only sets the starting point, because its requests may
        have waited for long. The requests of a router that no longer exists wait no more.
        """
        if not math.isfinite(last_scrape):
            return HeldRequests(_answered(scrape)), []
        routers, found = dict(self.routers), []
        for name in routers.keys() - {each.name for each in scrape.routers}:
            span = scrape.at - last_scrape
            found.append(Arrivals(scrape.at, span, -routers.pop(name).held))
        for router in scrape.routers:
            before, after = routers.get(router.name), router.snapshot
            if after is None or _is_empty(before, after):
                if before is not None and scrape.at - before.at >= HELD_SECONDS:
                    del routers[router.name]
                continue
            routers[router.name] = after
            found.append(_between(before, after, last_scrape))
        others = max((each.seconds for each in found), default=0.0) * replica_arrivals
        others += sum(max(each.requests, 0.0) for each in found)
        # Clients that leave reduce the queue. This alone must not look like a fall of the load.
        others = max(others, sum(max(-each.requests, 0.0) for each in found))
        given_up = sum(each.given_up for each in found)
        share = min(1.0, others / given_up) if given_up > 0 else 0.0
        return HeldRequests(routers), [
            Arrivals(it.at, it.seconds, it.requests + share * it.given_up) for it in found
        ]


def _answered(scrape: Scrape) -> dict[str, RouterSnapshot]:
    return {each.name: each.snapshot for each in scrape.routers if each.snapshot is not None}


def _is_empty(before: RouterSnapshot | None, after: RouterSnapshot) -> bool:
    """Return whether a router that has counted does not know its requests at present."""
    return after.counters is None and before is not None and before.counters is not None


def _between(before: RouterSnapshot | None, after: RouterSnapshot, last_scrape: float) -> Arrivals:
    """Return the arrivals between two reports of a router."""
    counters = after.counters
    if before is None:
        if counters is None or after.started < last_scrape:
            return Arrivals(after.at, 0.0, 0.0)
        before = RouterSnapshot(after.started, 0, after.started, HoldCounters())
    held, seconds = after.held - before.held, after.at - before.at
    if counters is None or before.counters is None:
        return Arrivals(after.at, seconds, held)
    done = counters.plus(before.counters, -1.0)
    if after.started != before.started or min(done.amounts) < 0:
        # The replicas get the requests that a picker held when it ended.
        done, left_before = counters, 0.0
    else:
        left_before = _left(before, before.counters)
    left = _left(after, counters) - left_before
    return Arrivals(after.at, seconds, held + done.timed_out, left + done.refused)


def _left(router: RouterSnapshot, counters: HoldCounters) -> float:
    """Return how many clients have left while their requests waited."""
    return counters.arrived - counters.released - counters.timed_out - router.held

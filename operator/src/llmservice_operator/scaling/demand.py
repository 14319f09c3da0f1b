"""The load of a service in percent of one replica: 170 means two replicas at 85 %.

The demand follows arrivals and not only completed work. An overload is therefore visible
immediately and in full, even if too few replicas are ready to serve it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from llmservice_operator.scaling.load import Price, RecentLoad

REACTION_SECONDS = 15.0
"""Seconds from a metric to a new pod object: one sync of the HorizontalPodAutoscaler."""

NORMAL_QUEUE_SECONDS = 0.5
"""Queued GPU-seconds per replica that batching needs. The rest of a queue is backlog."""

SHORTEST_DRAIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Demand:
    """The parts of the demand, each in replicas at full capacity."""

    load: float
    trend: float
    backlog: float
    """Replicas that empty the present or expected queue within one cold start, or within
    SHORTEST_DRAIN_SECONDS if that is longer."""
    has_burst: bool = False
    """Whether a short window exceeds the steady load. Seen for the first time, it is no load yet.
    """

    @property
    def percent(self) -> float:
        return 100 * (self.load + self.trend + self.backlog)


@dataclass(frozen=True, slots=True)
class Queue:
    """The requests that wait in one replica."""

    requests: float
    arriving: float
    """Load that arrives at this replica, in replicas at full capacity."""

    def movable_seconds(self, price: Price, seconds: float) -> float:
        """Return the part of the queue, in replica-seconds, that new replicas shorten within this
        time.

        The requests stay in their replica. New replicas only take over requests that would arrive
        behind them.
        """
        queued = self.requests * price.request - NORMAL_QUEUE_SECONDS
        return max(0.0, min(queued, self.arriving * seconds))


def demand(
    load: RecentLoad,
    queues: Iterable[Queue],
    held: float,
    ready: int,
    cold_start_seconds: float,
    node_wait_seconds: float = 0.0,
) -> Demand:
    """Return the demand, with the `queues` of `ready` replicas.

    `held` is the number of requests that wait in a router, which any new replica takes. A rise of
    the load is extended over the time until a replica that is requested now serves. This time
    includes the usual wait for a node.
    """
    horizon = node_wait_seconds + cold_start_seconds + REACTION_SECONDS
    drain = max(SHORTEST_DRAIN_SECONDS, cold_start_seconds)
    movable = sum(queue.movable_seconds(load.price, drain) for queue in queues)
    queue_seconds = held * load.price.request + movable
    # New replicas begin to serve one cold start from now. The present shortfall predicts the queue
    # at that time. Waiting until the queue exists would cost a second cold start.
    shortfall_seconds = max(0.0, load.present - ready) * cold_start_seconds
    return Demand(
        load.present,
        min(max(0.0, load.trend) * horizon, load.present),
        max(queue_seconds, shortfall_seconds) / drain,
        load.burst is not None,
    )

"""The load of a service in percent of one replica: 170 means two replicas at 85 %.

The demand follows arrivals and not only completed work. An overload is therefore visible
immediately and in full, even if too few replicas are ready to serve it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from llmservice_operator.scaling.ledger import Ledger, Tick, fit_line, step_residuals
from llmservice_operator.scaling.signals import Flow

STEADY_SECONDS = 60.0
"""Time span in seconds over which the steady load is measured."""

BURSTS = ((10.0, 3.0), (15.0, 3.0), (30.0, 2.0))
"""Pairs: the length of a span in seconds, and a number of standard deviations. The load of such a
span is used if it exceeds the steady load by more than this number of standard deviations, and the
scrape before also saw such a span."""

FEWEST_ARRIVALS = 5
"""Minimum number of requests in a span for a burst to be detected."""

TREND_SECONDS = 300.0
FEWEST_BINS = 8
"""Minimum number of bins in which a trend is visible."""
TREND_CERTAINTY = 3.0
"""Number of standard errors by which a slope must exceed zero to be a trend."""

REACTION_SECONDS = 15.0
"""Seconds from a metric to a new pod object: one sync of the HorizontalPodAutoscaler."""

NORMAL_QUEUE_SECONDS = 0.5
"""Queued GPU-seconds per replica that batching needs. The rest of a queue is backlog."""

SHORTEST_DRAIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Price:
    """Cost of requests and tokens in seconds of one replica at its capacity."""

    request: float
    """Replica-seconds of a mean request."""
    prompt_token: float
    """Replica-seconds of a prompt token to be computed."""
    answer_token: float
    mean_answer: float
    computed_share: float
    """Share of arriving prompt tokens that the prefix cache does not save."""
    spread: float
    """Root mean square of the work of a request, divided by the mean work. It is 1 if all requests
    are alike."""

    def arriving(self, rates: Flow) -> float:
        """Return how many replicas arrivals at these rates per second keep busy."""
        prompts = rates.prompt_tokens_arrived * self.computed_share * self.prompt_token
        return prompts + rates.arrivals * self.mean_answer * self.answer_token

    def arrived(self, tick: Tick) -> float:
        """Return how many replicas the arrivals of this span keep busy."""
        return self.arriving(tick.done) / tick.seconds

    def served(self, tick: Tick) -> float:
        """Return how many replicas the work done in this span kept busy."""
        prompts = tick.done.prompt_tokens_computed * self.prompt_token
        return (prompts + tick.done.generated_tokens * self.answer_token) / tick.seconds


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
    ledger: Ledger,
    price: Price,
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
    burst = burst_of(ledger, price)
    load = _load(ledger, price, burst)
    horizon = node_wait_seconds + cold_start_seconds + REACTION_SECONDS
    drain = max(SHORTEST_DRAIN_SECONDS, cold_start_seconds)
    movable = sum(queue.movable_seconds(price, drain) for queue in queues)
    queue_seconds = held * price.request + movable
    # New replicas begin to serve one cold start from now. The present shortfall predicts the queue
    # at that time. Waiting until the queue exists would cost a second cold start.
    shortfall_seconds = max(0.0, load - ready) * cold_start_seconds
    return Demand(
        load,
        min(max(0.0, trend_of(ledger, price)) * horizon, load),
        max(queue_seconds, shortfall_seconds) / drain,
        burst is not None,
    )


def load_of(ledger: Ledger, price: Price) -> float:
    """Return how many replicas the load of the last minute, or of a shorter burst, keeps busy."""
    return _load(ledger, price, burst_of(ledger, price))


def _load(ledger: Ledger, price: Price, burst: float | None) -> float:
    # A single short window exceeds its threshold by chance every few minutes.
    if burst is None or burst_of(ledger.without_last(), price) is None:
        return _steady(ledger, price)
    return burst


def _steady(ledger: Ledger, price: Price) -> float:
    minute = ledger.last(STEADY_SECONDS)
    return max(price.arrived(minute), price.served(minute)) if minute.seconds > 0 else 0.0


def burst_of(ledger: Ledger, price: Price) -> float | None:
    """Return the highest load of a short window that exceeds the steady load by more than noise.

    None without such a window.
    """
    steady = _steady(ledger, price)
    bursts = []
    for seconds, deviations in BURSTS:
        short = ledger.last(seconds)
        if short.seconds <= 0 or short.done.arrivals < FEWEST_ARRIVALS:
            continue
        noise = deviations * price.spread / math.sqrt(short.done.arrivals)
        recent = price.arrived(short)
        if recent > steady * (1 + noise):
            bursts.append(recent)
    return max(bursts, default=None)


def trend_of(ledger: Ledger, price: Price) -> float:
    """Return the steady rise of the load in replicas per second.

    0 for noise, a step or a fall, and while too little of the load is known.
    """
    bins = bins_of(ledger, price)
    recent = [each for each in bins if each.at > bins[-1].at - TREND_SECONDS]
    if len(recent) < FEWEST_BINS or recent[-1].at - recent[0].at < TREND_SECONDS / 2:
        return 0.0
    values = [each.load for each in recent]
    line = fit_line([(each.at, value) for each, value in zip(recent, values, strict=True)])
    if line.slope <= TREND_CERTAINTY * line.slope_error:
        return 0.0
    # After a step, the load stays at its new level and no longer rises.
    return line.slope if line.squared_residuals <= step_residuals(values) else 0.0


class Bin(NamedTuple):
    """The arrivals of a span of BIN_SECONDS, of which a part may be unknown."""

    at: float
    """Time of the end of the known part."""
    seconds: float
    """Length of the known part."""
    work: float
    """Replica-seconds of the arrivals."""
    arrivals: float

    @property
    def load(self) -> float:
        """Number of replicas that the arrivals keep busy."""
        return self.work / self.seconds if self.seconds > 0 else 0.0


def bins_of(ledger: Ledger, price: Price) -> list[Bin]:
    """Return the bins of a ledger, oldest first."""
    bins = list[Bin]()
    for _, group in groupby(ledger.ticks, attrgetter("bin")):
        ticks = tuple(group)
        bins.append(
            Bin(
                ticks[-1].at,
                sum(tick.seconds for tick in ticks),
                sum(price.arriving(tick.done) for tick in ticks),
                sum(tick.done.arrivals for tick in ticks),
            )
        )
    return bins

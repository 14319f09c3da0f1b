"""The load of a service in the last minutes: its level, its bursts, its trend and its variation.

A load is the number of replicas that the arrivals keep busy.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from llmservice_operator.scaling.ledger import (
    KEPT_SECONDS,
    Ledger,
    Line,
    Tick,
    fit_line,
    step_residuals,
)
from llmservice_operator.scaling.signals import Flow

STEADY_SECONDS = 60.0
"""Time span in seconds over which the level of a load is measured, unless it is constant."""

BURSTS = ((10.0, 3.3), (15.0, 3.5), (30.0, 2.8), (60.0, 3.0))
"""Pairs: the length of a span in seconds, and a number of standard deviations. The load of such a
span is used if it exceeds the level by more than this number of standard deviations, and the scrape
before also saw such a span."""

FEWEST_ARRIVALS = 5
"""Minimum number of requests in a span for a burst to be detected."""

TREND_SECONDS = 300.0
FEWEST_BINS = 8
"""Minimum number of bins in which a trend is visible."""
TREND_CERTAINTY = 3.0
"""Number of standard errors by which a slope must exceed zero to be a trend."""

BURSTY_SPREAD = 0.4
"""Standard deviation of the load around its trend, as a share of the mean, above which the load is
bursty."""
NOISE_DEVIATIONS = 3.0
STEADY_NOISE = 1.5
"""Multiple of the expected noise up to which a load without a trend is constant."""
STEADY_TREND = 2.0
"""Number of standard errors up to which a slope is no trend."""


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


class Variation(NamedTuple):
    """How the load of the last ten minutes varied."""

    spread: float
    """Standard deviation around the trend, as a share of the mean."""
    noise: float
    """The same of a constant load, whose requests arrive independently of each other."""
    has_trend: bool

    @property
    def is_bursty(self) -> bool:
        """Whether the load varied by more than trend and noise explain."""
        return self.spread > max(BURSTY_SPREAD, NOISE_DEVIATIONS * self.noise)

    @property
    def is_steady(self) -> bool:
        """Whether noise alone explains how the load varied."""
        return not self.has_trend and self.spread <= STEADY_NOISE * self.noise


class RecentLoad:
    """The load of a ledger, with each request at its price."""

    def __init__(self, ledger: Ledger, price: Price) -> None:
        self.ledger = ledger
        self.price = price

    @cached_property
    def level(self) -> float:
        """The load without short bursts.

        It is measured over the last minute. If noise alone explains how the load varied, it is
        measured over all that is known, because the noise of one minute is no reason for another
        replica.
        """
        span = self._level_span
        # Work that was done also counts, because its arrival may be unknown.
        return max(self.price.arrived(span), self.price.served(span)) if span.seconds > 0 else 0.0

    @cached_property
    def burst(self) -> float | None:
        """The highest load of a short span that exceeds the level by more than noise.

        None without such a span.
        """
        bursts = []
        for seconds, deviations in BURSTS:
            short = self.ledger.last(seconds)
            if short.seconds <= 0 or short.done.arrivals < FEWEST_ARRIVALS:
                continue
            # The span is a part of the time over which the level is measured.
            apart = math.sqrt(max(0.0, 1 - short.seconds / self._level_span.seconds))
            noise = deviations * apart * self.price.spread / math.sqrt(short.done.arrivals)
            recent = self.price.arrived(short)
            if recent > self.level * (1 + noise):
                bursts.append(recent)
        return max(bursts, default=None)

    @cached_property
    def present(self) -> float:
        """The level, or the load of a burst."""
        # A single short span exceeds its threshold by chance every few minutes.
        before = RecentLoad(self.ledger.without_last(), self.price)
        if self.burst is None or before.burst is None:
            return self.level
        return self.burst

    @cached_property
    def trend(self) -> float:
        """The steady rise of the load in replicas per second.

        0 for noise, a step or a fall, and while too little of the load is known.
        """
        recent = [each for each in self._bins if each.at > self._bins[-1].at - TREND_SECONDS]
        if len(recent) < FEWEST_BINS or recent[-1].at - recent[0].at < TREND_SECONDS / 2:
            return 0.0
        line = _line(recent)
        if line.slope <= TREND_CERTAINTY * line.slope_error:
            return 0.0
        # After a step, the load stays at its new level and no longer rises.
        steps = step_residuals([each.load for each in recent])
        return line.slope if line.squared_residuals <= steps else 0.0

    @cached_property
    def variation(self) -> Variation | None:
        """How the load varied. None if less than five minutes of it are known, or it is zero."""
        ticks = self.ledger.ticks
        if not ticks or ticks[-1].at - ticks[0].at < KEPT_SECONDS / 2:
            return None
        count = len(self._bins)
        mean = sum(each.load for each in self._bins) / count
        arrivals = sum(each.arrivals for each in self._bins) / count
        if mean <= 0 or arrivals <= 0:
            return None
        line = _line(self._bins)
        return Variation(
            math.sqrt(line.squared_residuals / count) / mean,
            self.price.spread / math.sqrt(arrivals),
            abs(line.slope) > STEADY_TREND * line.slope_error,
        )

    @cached_property
    def _level_span(self) -> Tick:
        """The time over which the level is measured."""
        is_steady = self.variation is not None and self.variation.is_steady
        return self.ledger.last(KEPT_SECONDS if is_steady else STEADY_SECONDS)

    @cached_property
    def _bins(self) -> list[Bin]:
        """The bins of the ledger, oldest first."""
        bins = list[Bin]()
        for _, group in groupby(self.ledger.ticks, attrgetter("bin")):
            ticks = tuple(group)
            bins.append(
                Bin(
                    ticks[-1].at,
                    sum(tick.seconds for tick in ticks),
                    sum(self.price.arriving(tick.done) for tick in ticks),
                    sum(tick.done.arrivals for tick in ticks),
                )
            )
        return bins


def _line(bins: list[Bin]) -> Line:
    return fit_line([(each.at, each.load) for each in bins])

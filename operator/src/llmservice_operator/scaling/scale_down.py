"""Computes the scale-down window. The highest demand in the window limits scale-down.

An idle replica costs GPU time. A replica that is removed too early costs a cold start, and the
requests that miss their SLO meanwhile. Waiting about as long as a cold start costs at most twice as
much as knowing the future (the ski-rental argument).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from llmservice_operator.scaling.demand import Price, bins_of
from llmservice_operator.scaling.ledger import KEPT_SECONDS, Ledger, fit_line

COLD_STARTS = 1.5
SHORTEST_SECONDS, LONGEST_SECONDS = 90.0, 600.0

UNDONE_SECONDS = 900.0
"""Time in seconds after a scale-down within which a scale-up undoes it."""
REMEMBERED_SECONDS = 3600.0
"""Time in seconds for which an undone scale-down lengthens the window."""
UNDONE_FACTOR = 8.0
LONGEST_UNDONE_SECONDS = 1800.0

BURSTY_SPREAD = 0.4
"""Standard deviation of the load around its trend, as a share of the mean, above which the load is
bursty."""
NOISE_DEVIATIONS = 3.0
STEADY_NOISE = 1.5
"""Multiple of the expected noise up to which a load without a trend is constant."""
STEADY_TREND = 2.0
"""Number of standard errors up to which a slope is no trend."""


@dataclass(frozen=True, slots=True)
class UndoneScaleDowns:
    """Scale-downs that were undone soon although the load was constant.

    The noise of a load close to a whole number of replicas removes and adds the same replica again
    and again. Each time costs a cold start, so the window grows until the replica stays. A load
    that changes needs another number of replicas, and a longer window would only cost more.
    """

    replicas: int = 0
    fell_at: float = -math.inf
    """Time in seconds of the last scale-down that nothing undid."""
    most_wanted: float = 0.0
    """Highest number of replicas that the load wanted after that. A rollout also adds replicas, but
    no load wants them."""
    undone_at: tuple[float, ...] = ()
    """Times in seconds of the scale-ups of the last REMEMBERED_SECONDS, oldest first."""

    def add(
        self, now: float, replicas: int, wanted: float, *, is_steady: bool
    ) -> "UndoneScaleDowns":
        """Return the scale-downs after the present and the wanted number of replicas was seen.

        `is_steady` says whether the load is constant but for its noise.
        """
        undone_at = tuple(at for at in self.undone_at if at > now - REMEMBERED_SECONDS)
        if replicas < self.replicas:
            return UndoneScaleDowns(replicas, now, wanted, undone_at)
        fell_at, most_wanted = self.fell_at, max(self.most_wanted, wanted)
        if replicas > self.replicas and most_wanted > self.replicas:
            if is_steady and now <= fell_at + UNDONE_SECONDS:
                undone_at = (*undone_at, now)
            fell_at = -math.inf
        return UndoneScaleDowns(replicas, fell_at, most_wanted, undone_at)

    def lengthened(self, window_seconds: float) -> float:
        """Return the window after the scale-downs that were undone."""
        factor = UNDONE_FACTOR ** len(self.undone_at)
        return max(window_seconds, min(window_seconds * factor, LONGEST_UNDONE_SECONDS))


NONE_UNDONE = UndoneScaleDowns()


def scale_down_window(
    cold_start_seconds: float, is_bursty: bool, undone: UndoneScaleDowns = NONE_UNDONE
) -> float:
    """Return the scale-down stabilization window of the HPA, in seconds."""
    if is_bursty:
        return LONGEST_SECONDS
    window = min(max(COLD_STARTS * cold_start_seconds, SHORTEST_SECONDS), LONGEST_SECONDS)
    return undone.lengthened(window)


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


def variation_of(ledger: Ledger, price: Price) -> Variation | None:
    """Return how the load varied. None if less than five minutes of it are known, or it is zero."""
    if not ledger.ticks or ledger.ticks[-1].at - ledger.ticks[0].at < KEPT_SECONDS / 2:
        return None
    bins = bins_of(ledger, price)
    mean = sum(each.load for each in bins) / len(bins)
    arrivals = sum(each.arrivals for each in bins) / len(bins)
    if mean <= 0 or arrivals <= 0:
        return None
    line = fit_line([(each.at, each.load) for each in bins])
    return Variation(
        math.sqrt(line.squared_residuals / len(bins)) / mean,
        price.spread / math.sqrt(arrivals),
        abs(line.slope) > STEADY_TREND * line.slope_error,
    )

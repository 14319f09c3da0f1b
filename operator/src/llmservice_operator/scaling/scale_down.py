"""Computes the scale-down window. The highest demand in the window limits scale-down.

An idle replica costs GPU time. A replica that is removed too early costs a cold start, and the
requests that miss their SLO meanwhile. Waiting about as long as a cold start costs at most twice as
much as knowing the future (the ski-rental argument).
"""

import math

from llmservice_operator.scaling.demand import Price
from llmservice_operator.scaling.ledger import KEPT_SECONDS, Ledger, fit_line

COLD_STARTS = 1.5
SHORTEST_SECONDS, LONGEST_SECONDS = 90.0, 600.0

BIN_SECONDS = 15.0
BURSTY_SPREAD = 0.4
"""Standard deviation of the load around its trend, as a share of the mean, above which the load is
bursty."""
NOISE_DEVIATIONS = 3.0


def scale_down_window(cold_start_seconds: float, is_bursty: bool) -> float:
    """Return the scale-down stabilization window of the HPA, in seconds."""
    if is_bursty:
        return LONGEST_SECONDS
    return min(max(COLD_STARTS * cold_start_seconds, SHORTEST_SECONDS), LONGEST_SECONDS)


def is_bursty(ledger: Ledger, price: Price) -> bool:
    """Return whether the load varied by more than trend and noise explain.

    The load is that of the last ten minutes. False if less than five minutes of it are known.
    """
    if not ledger.ticks or ledger.ticks[-1].at - ledger.ticks[0].at < KEPT_SECONDS / 2:
        return False
    bins = _bins(ledger, price)
    values = [work for _, work, _ in bins]
    mean = sum(values) / len(values)
    arrivals = sum(count for _, _, count in bins) / len(bins)
    if mean <= 0 or arrivals <= 0:
        return False
    line = fit_line([(at, work) for at, work, _ in bins])
    spread = math.sqrt(line.squared_residuals / len(bins)) / mean
    return spread > max(BURSTY_SPREAD, NOISE_DEVIATIONS * price.spread / math.sqrt(arrivals))


def _bins(ledger: Ledger, price: Price) -> list[tuple[float, float, float]]:
    """Return the time, work and arrivals of each span of BIN_SECONDS."""
    bins: dict[int, list[float]] = {}
    for tick in ledger.ticks:
        entry = bins.setdefault(math.floor(tick.at / BIN_SECONDS), [0.0, 0.0])
        if tick.seconds > 0:
            entry[0] += price.arrived(tick) * tick.seconds
            entry[1] += tick.done.arrivals
    return [(at * BIN_SECONDS, work, arrivals) for at, (work, arrivals) in sorted(bins.items())]

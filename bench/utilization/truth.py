"""Estimates the true capacity: the rate at which the share of requests within the SLO falls to the
objective.

It uses none of the product's formulas. Trials are noisy, because requests arrive at random and the
machine is shared. So the search continues on both sides of its best guess, and the estimate uses
all trials.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIDES = (0.94, 1.06)
"""Factors by which the estimated capacity is multiplied to get the next rate. They are used once a
rate has met the objective and another rate has missed it. The factors alternate, so the search
tries rates below and above the estimate."""
STEP = 1.3
"""Factor between two successive rates while all rates have met the objective, or all have missed
it."""
SLOWEST_RATE = 0.05
"""Lowest rate of the search, in requests per second. At a lower rate, the search ends with an
error."""
HICCUPS = 0.005
"""Share of the requests that miss at any rate, because other programs use the machine."""
STEEPNESS = np.geomspace(3.0, 60.0, 40)
"""Candidate exponents of the power law by which the odds of a miss grow with the rate."""
RATES = 400


@dataclass(frozen=True)
class Trial:
    """Outcomes of the requests at one rate."""

    rate: float
    requests: int
    missed: int

    def met(self, objective: float) -> bool:
        return self.missed <= (1 - objective) * self.requests


@dataclass(frozen=True)
class Truth:
    """The capacity in requests per second, and its interval with 90 % confidence."""

    capacity: float
    low: float
    high: float


def next_rate(trials: Sequence[Trial], objective: float, guess: float) -> float:
    """Return the next rate to try. `guess` is only the start of the search.

    Raises RuntimeError when not even one request every 20 seconds meets the SLO, because the
    machine is then busy with something else.
    """
    met = [trial.rate for trial in trials if trial.met(objective)]
    missed = [trial.rate for trial in trials if not trial.met(objective)]
    if met and missed:
        return estimate(trials, objective).capacity * SIDES[len(trials) % 2]
    rate = min(missed) / STEP if missed else max([guess, *(STEP * it for it in met)])
    if rate < SLOWEST_RATE:
        raise RuntimeError("the SLO is missed without load: is the machine busy otherwise?")
    return rate


def estimate(trials: Sequence[Trial], objective: float) -> Truth:
    """Return the estimate from all trials together.

    The model is that the odds of a miss grow with a power of the rate. The exponent is unknown, so
    the likelihood of a capacity is summed over all exponents in STEEPNESS. Trials usually vary by
    more than the random outcomes of their requests explain. Each trial then has less weight, which
    widens the interval.
    """
    rate = np.array([trial.rate for trial in trials])
    count = np.array([trial.requests for trial in trials], dtype=float)
    missed = np.array([trial.missed for trial in trials], dtype=float)
    capacity = np.geomspace(rate.min() / 2, rate.max() * 2, RATES)
    share = _missed_share(rate, capacity[:, None, None], STEEPNESS[:, None], 1 - objective)
    likelihood = (missed * np.log(share) + (count - missed) * np.log1p(-share)).sum(axis=-1)
    best = share[np.unravel_index(likelihood.argmax(), likelihood.shape)]
    surprise = ((missed - count * best) ** 2 / (count * best * (1 - best))).sum()
    telling = int((best > 2 * HICCUPS).sum())
    spread = max(1.0, surprise / max(telling - 2, 1))
    weight = np.exp((likelihood - likelihood.max()) / spread).sum(axis=1)
    known = np.cumsum(weight) / weight.sum()
    low, middle, high = (float(capacity[np.searchsorted(known, it)]) for it in (0.05, 0.5, 0.95))
    return Truth(middle, low, high)


def _missed_share(
    rate: np.ndarray, capacity: np.ndarray, steepness: np.ndarray, allowed: float
) -> np.ndarray:
    at_capacity = (allowed - HICCUPS) / (1 - HICCUPS)
    odds = math.log(at_capacity / (1 - at_capacity)) + steepness * np.log(rate / capacity)
    share: np.ndarray = HICCUPS + (1 - HICCUPS) / (1 + np.exp(-np.clip(odds, -50, 30)))
    return share

"""Compares the figures of the cells with the limits of the gates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np

from scaling.engine import Array

BLOCK_REQUESTS = 200
"""Number of consecutive requests in a block, which a resample draws as a whole, because they meet
the same queues."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A figure with its 90 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


MISSING = Interval(nan, nan, nan)


def interval_of(runs: Sequence[Array], figure: Callable[..., float]) -> Interval:
    """Return a figure that compares several policies, with its interval.

    `runs` contains, for each policy, whether each request was in time. `figure` computes the figure
    from the percentage of requests in time of each policy. All policies serve the same requests, so
    each resample draws the same blocks of requests for all policies.
    """
    rows = np.array(runs, float)
    blocks = [rows[:, at : at + BLOCK_REQUESTS] for at in range(0, rows.shape[1], BLOCK_REQUESTS)]
    met = np.array([block.sum(axis=1) for block in blocks])
    sizes = np.array([block.shape[1] for block in blocks])
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, len(blocks), (RESAMPLES, len(blocks)))
    percent = 100 * met[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)[:, None]
    low, high = np.quantile([figure(*row) for row in percent], (0.05, 0.95))
    return Interval(figure(*(100 * rows.mean(axis=1))), float(low), float(high))


@dataclass(frozen=True)
class Gate:
    """A limit for the figure of every cell."""

    name: str
    limit: float
    is_at_least: bool

    def line(self, cells: dict[str, Interval]) -> str:
        """Return the printed line of the gate, with the figure of the worst cell.

        The verdict is PASS if the whole interval of every cell meets the limit. It is FAIL if the
        whole interval of a cell misses the limit, or if a cell was not measured. Otherwise it is
        UNDECIDED.
        """
        sign = ">=" if self.is_at_least else "<="
        if not cells:
            return f"GATE {self.name} missing {sign}{self.limit:g} FAIL"
        sign_of = 1 if self.is_at_least else -1
        worst = min(
            cells, key=lambda name: (not isnan(cells[name].value), sign_of * cells[name].value)
        )
        verdict = "PASS" if all(map(self._is_met, cells.values())) else "UNDECIDED"
        if any(map(self._is_missed, cells.values())):
            verdict = "FAIL"
        return f"GATE {self.name} {cells[worst]} {sign}{self.limit:g} {verdict} ({worst})"

    def _is_met(self, figure: Interval) -> bool:
        return figure.low >= self.limit if self.is_at_least else figure.high <= self.limit

    def _is_missed(self, figure: Interval) -> bool:
        if isnan(figure.value):
            return True
        return figure.high < self.limit if self.is_at_least else figure.low > self.limit


def gate_line(
    name: str, value: float, limit: float, detail: str, *, is_at_least: bool = False
) -> str:
    """Return the printed line of a gate with one figure, whose unit is in `detail`."""
    sign, is_met = (">=", value >= limit) if is_at_least else ("<=", value <= limit)
    verdict = "PASS" if is_met else "FAIL"
    return f"GATE {name} {value:.4g} {sign}{limit:g} {verdict} ({detail})"


SIM_TTFT = Gate("sim_ttft", 0.75, True)
NEVER_WORSE = Gate("never_worse", 1.0, False)


def closed_share(ours: float, bound: float, *peers: float) -> float:
    """Return how much of the gap between the best peer and the bound our router closes, as a share.

    If a peer attains the bound, the share is 1 if our router is as good as that peer, else 0.
    """
    best = max(peers)
    if bound <= best:
        return 1.0 if ours >= best else 0.0
    return (ours - best) / (bound - best)


def lost_points(ours: float, *others: float) -> float:
    """Return how many percentage points our router is worse than the best other policy."""
    return max(others) - ours

"""Arrivals and work of a service in the last minutes, tick by tick."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, takewhile

from llmservice_operator.scaling.signals import Tally

KEPT_SECONDS = 600.0

FINE_SECONDS = 90.0
"""Age in seconds from which ticks are joined. Only the last minute is measured in parts."""
BIN_SECONDS = 15.0
"""Length in seconds of the time in which ticks are joined."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Arrivals and work between two scrapes, all replicas together."""

    at: float
    seconds: float
    done: Tally = field(default_factory=Tally)

    def plus(self, other: "Tick", share: float) -> "Tick":
        """Return this tick with `share` of the work of `other` added."""
        return Tick(self.at, self.seconds, self.done.plus(other.done, share))

    def joined(self, later: "Tick") -> "Tick":
        """Return one tick in place of this one and the next."""
        return Tick(later.at, self.seconds + later.seconds, self.done.plus(later.done))

    @property
    def bin(self) -> int:
        """Number of the span of BIN_SECONDS in which the tick ended."""
        return math.floor(self.at / BIN_SECONDS)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ticks of the last ten minutes, oldest first."""

    ticks: tuple[Tick, ...] = ()

    def add(self, tick: Tick) -> "Ledger":
        """Return the ledger with a new tick. Old ticks of the same bin become one."""
        kept = list[Tick]()
        for old in self.ticks:
            if old.at <= tick.at - KEPT_SECONDS:
                continue
            if kept and old.at <= tick.at - FINE_SECONDS and old.bin == kept[-1].bin:
                kept[-1] = kept[-1].joined(old)
            else:
                kept.append(old)
        return Ledger((*kept, tick))

    def spread(self, spans: Iterable[Tick]) -> "Ledger":
        """Return the ledger with the work of longer spans distributed over its ticks.

        The newest tick also gets the part of a span that follows this tick. The part that precedes
        the first tick is left out.
        """
        ticks = list(self.ticks)
        for span in spans:
            began = span.at - span.seconds
            for i in reversed(range(len(ticks) if span.seconds > 0 else 0)):
                if ticks[i].at <= began:
                    break
                ended = span.at if i == len(ticks) - 1 else min(ticks[i].at, span.at)
                shared = ended - max(ticks[i].at - ticks[i].seconds, began)
                if shared > 0:
                    ticks[i] = ticks[i].plus(span, shared / span.seconds)
        return Ledger(tuple(ticks))

    def without_last(self) -> "Ledger":
        """Return the ledger as of the scrape before the last."""
        return Ledger(self.ticks[:-1])

    def last(self, seconds: float) -> Tick:
        """Return the sum of the ticks that ended in the last `seconds`."""
        if not self.ticks:
            return Tick(0.0, 0.0)
        now = self.ticks[-1].at
        ended = list(takewhile(lambda tick: tick.at > now - seconds + 1e-6, reversed(self.ticks)))
        done = Tally.total(tick.done for tick in ended)
        return Tick(now, sum(tick.seconds for tick in ended), done)


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line through points, and how well it fits."""

    slope: float
    slope_error: float
    squared_residuals: float


def fit_line(points: list[tuple[float, float]]) -> Line:
    """Return the least-squares line through (time, value) points, of which at least three differ in
    time.
    """
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    residuals = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return Line(slope, math.sqrt(residuals / max(count - 2, 1) / spread), residuals)


def step_residuals(values: list[float]) -> float:
    """Return the sum of squared residuals of the best step function with one jump."""
    sums = list(accumulate(values, initial=0.0))
    squares = sum(value * value for value in values)
    count = len(values)
    return squares - max(
        sums[i] ** 2 / i + (sums[count] - sums[i]) ** 2 / (count - i) for i in range(1, count)
    )

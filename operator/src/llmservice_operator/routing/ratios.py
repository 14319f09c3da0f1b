"""Learns ratios and rates from sums that fade."""

import math
from dataclasses import dataclass


@dataclass(slots=True)
class FadingRatio:
    """Ratio of two sums. The sums fade as evidence is added, and begin with a guess."""

    guess: float
    weight: float
    """Amount of the denominator that the guess is worth."""
    memory: float
    """Amount of the denominator after which older evidence has faded to 1/2."""
    _numerator: float = 0.0
    _denominator: float = 0.0

    def add(self, numerator: float, denominator: float) -> None:
        """Add evidence. Raises ValueError if the denominator is negative."""
        if denominator < 0:
            raise ValueError(f"evidence cannot be negative: {denominator}")
        kept = self.memory / (self.memory + denominator)
        self._numerator = kept * self._numerator + numerator
        self._denominator = kept * self._denominator + denominator

    @property
    def value(self) -> float:
        return (self._numerator + self.weight * self.guess) / (self._denominator + self.weight)


@dataclass(slots=True)
class FadingRate:
    """Amount per second, over about the last `seconds`."""

    seconds: float
    _sum: float = 0.0
    _at: float | None = None
    _age: float = 0.0

    def add(self, amount: float, now: float) -> None:
        """Add an amount. A time before that of the last amount counts as the same time."""
        if self._at is not None:
            passed = max(0.0, now - self._at)
            self._sum *= math.exp(-passed / self.seconds)
            self._age += passed
        self._at = max(now, self._at or now)
        self._sum += amount

    def value(self, now: float) -> float:
        """Return the rate; 0 before the first amount. A history shorter than one second counts as
        one second.
        """
        if self._at is None:
            return 0.0
        passed = max(0.0, now - self._at)
        age = max(self._age + passed, 1.0)
        faded = self._sum * math.exp(-passed / self.seconds)
        return faded / (self.seconds * -math.expm1(-age / self.seconds))

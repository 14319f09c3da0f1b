"""Learns ratios and rates from sums that fade."""

import math
from dataclasses import dataclass
from typing import NamedTuple


class Evidence(NamedTuple):
    """What a ratio or a rate was learned from, so that another one can continue with it."""

    amount: float
    """Numerator of a ratio, or sum of a rate."""
    weight: float
    """Denominator of a ratio, or age of a rate in seconds."""


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
    def evidence(self) -> Evidence:
        return Evidence(self._numerator, self._denominator)

    def adopt(self, evidence: Evidence) -> None:
        """Continue with the evidence of another ratio if it has more weight."""
        if evidence.weight > self._denominator:
            self._numerator, self._denominator = evidence

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

    def evidence(self, now: float) -> Evidence:
        passed = 0.0 if self._at is None else max(0.0, now - self._at)
        return Evidence(self._sum * math.exp(-passed / self.seconds), self._age + passed)

    def adopt(self, evidence: Evidence, now: float) -> None:
        """Continue with the evidence of another rate if it is older."""
        if evidence.weight > self.evidence(now).weight:
            self._sum, self._age = evidence
            self._at = now

    def value(self, now: float) -> float:
        """Return the rate; 0 before the first amount. A history shorter than one second counts as
        one second.
        """
        if self._at is None:
            return 0.0
        faded, age = self.evidence(now)
        return faded / (self.seconds * -math.expm1(-max(age, 1.0) / self.seconds))

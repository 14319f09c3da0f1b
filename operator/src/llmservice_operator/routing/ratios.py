"""Learns a ratio from two sums that fade."""

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
        """Add evidence. A negative denominator is an error of the caller (ValueError)."""
        if denominator < 0:
            raise ValueError(f"evidence cannot be negative: {denominator}")
        kept = self.memory / (self.memory + denominator)
        self._numerator = kept * self._numerator + numerator
        self._denominator = kept * self._denominator + denominator

    @property
    def value(self) -> float:
        return (self._numerator + self.weight * self.guess) / (self._denominator + self.weight)

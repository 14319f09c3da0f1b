"""Arithmetic over the fields of a dataclass, so that a counter is declared in one place."""

from typing import Any, ClassVar, Self


class Sums:
    """Base of dataclasses whose fields can be added: numbers, tuples of numbers, and other Sums.

    Every field has zero, or zeros, as its default.
    """

    __slots__ = ()

    __match_args__: ClassVar[tuple[str, ...]]
    """Names of the fields in their order, as `dataclass` sets them."""

    @classmethod
    def of(cls, other: "Sums") -> Self:
        """Return the amounts of `other` in the fields that both classes have; the rest is zero."""
        shared = (name for name in cls.__match_args__ if name in other.__match_args__)
        return cls(**{name: getattr(other, name) for name in shared})

    def plus(self, other: Self, weight: float = 1.0) -> Self:
        """Return the sum of these amounts and `weight` times the amounts of `other`."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__match_args__)
        return type(self)(*(_weighted(mine, theirs, weight) for mine, theirs in pairs))

    def times(self, weight: float) -> Self:
        return type(self)().plus(self, weight)


def _weighted(mine: Any, theirs: Any, weight: float) -> Any:
    if isinstance(mine, tuple):
        return tuple(a + weight * b for a, b in zip(mine, theirs, strict=True))
    if isinstance(mine, Sums):
        return mine.plus(theirs, weight)
    return mine + weight * theirs

"""Arithmetic over the fields of a dataclass, so that a counter is declared in one place."""

from collections.abc import Iterable
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

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """Return the sum of the amounts of all parts. It is faster than `plus` for each of them."""
        found = tuple(parts)
        columns = ([getattr(part, name) for part in found] for name in cls.__match_args__)
        return cls(*(_total(column) for column in columns)) if found else cls()

    @property
    def amounts(self) -> tuple[Any, ...]:
        """The amounts of all fields, in their order."""
        return tuple([getattr(self, name) for name in self.__match_args__])

    def plus(self, other: Self, weight: float = 1.0) -> Self:
        """Return the sum of these amounts and `weight` times the amounts of `other`."""
        # Every assessment adds thousands of amounts, and a list is made faster than a generator.
        return type(self)(
            *[
                _weighted(getattr(self, name), getattr(other, name), weight)
                for name in self.__match_args__
            ]
        )

    def times(self, weight: float) -> Self:
        return type(self)().plus(self, weight)


def _total(amounts: list[Any]) -> Any:
    first = amounts[0]
    if isinstance(first, tuple):
        return tuple(map(sum, zip(*amounts, strict=True)))
    return type(first).total(amounts) if isinstance(first, Sums) else sum(amounts)


def _weighted(mine: Any, theirs: Any, weight: float) -> Any:
    if isinstance(mine, tuple):
        # Most amounts of a histogram are zero. `or` makes them one object, which saves three
        # quarters of the memory.
        return tuple([a + weight * b or 0.0 for a, b in zip(mine, theirs, strict=True)])
    if isinstance(mine, Sums):
        return mine.plus(theirs, weight)
    return mine + weight * theirs

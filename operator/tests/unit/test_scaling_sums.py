"""Tests the arithmetic over the fields of counters."""

from functools import reduce

import pytest

from llmservice_operator.scaling.signals import Counters, Tally
from operator_support.scaling import load


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_the_total_of_counters_is_the_sum_of_all_of_them(number: int) -> None:
    parts = [load(2.0, seconds) for seconds in range(number)]
    assert Counters.total(parts) == reduce(Counters.plus, parts, Counters())
    assert Counters.total(iter(parts)) == Counters.total(parts)
    tallies = [Tally.of(part) for part in parts]
    assert Tally.total(tallies) == Tally.of(Counters.total(parts))


def test_counters_of_different_lengths_cannot_be_added() -> None:
    short = Counters(prompt_lengths=(1.0,))
    with pytest.raises(ValueError, match="zip"):
        Counters.total([short, load(1.0, 1.0)])
    with pytest.raises(ValueError, match="zip"):
        short.plus(load(1.0, 1.0))

"""The size of the fault tests: a seeded sample, or the long form with every case."""

import os
import random
from collections.abc import Sequence
from typing import Final, TypeVar

Item = TypeVar("Item")

SEED: Final = int(os.environ.get("LLMSERVICE_TEST_SEED", "1"))
"""Seed of all random draws."""
IS_LONG: Final = os.environ.get("LLMSERVICE_TEST_LONG", "") == "true"
"""True if every case runs, as in `make test-faults`."""
OUTAGE_SECONDS: Final = 300.0 if IS_LONG else 12.0
"""Duration of an outage in seconds."""
CHURN_ROUNDS: Final = 50 if IS_LONG else 2
"""Number of times that every kind of child is disturbed."""


def sampled(items: Sequence[Item], number: int, salt: str = "") -> list[Item]:
    """Return `number` of the items, or all of them in the long form."""
    if IS_LONG or number >= len(items):
        return list(items)
    return random.Random(f"{SEED} {salt}").sample(list(items), number)


def drawn(items: Sequence[Item], number: int, salt: str = "") -> list[Item]:
    """Return `number` items in random order. Each item occurs about equally often."""
    draw, found = random.Random(f"{SEED} {salt}"), list[Item]()
    while len(found) < number:
        found += draw.sample(list(items), len(items))
    return found[:number]

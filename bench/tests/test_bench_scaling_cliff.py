"""Tests a sample of the search for cliffs. `make bench-scaling-unseen` runs the whole search."""

from scaling.cliff import MOST_FALL, examined

SAMPLE = (*range(145), 1100, 1366, 4303, 5623, 8497)
"""The last ones had cliffs: their prompts are much shorter than a step."""


def test_no_small_change_of_a_limit_changes_the_capacity_much() -> None:
    found = [examined(seed) for seed in SAMPLE]

    assert max(it.fall for it in found) <= MOST_FALL
    assert max(it.error for it in found) <= 0.01

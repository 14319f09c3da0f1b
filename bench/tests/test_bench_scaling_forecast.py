"""Tests the histories before the simulated weekday, and its traffic."""

import numpy as np
import pytest

from scaling import forecast as bench
from scaling.truth import Truth

LEAD = 135.0


@pytest.fixture(autouse=True)
def _capacity_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "truth_of", lambda _: Truth(15.0, 1.0, 0.1))


def test_the_weeks_before_make_the_morning_ramp_foreseen() -> None:
    history = bench.weekdays_before(np.random.default_rng(1))
    ramp = bench.RAMP - bench.BEGINS

    assert history.until(ramp).foreseen(ramp - LEAD, LEAD, 85.0) > 200
    assert history.foreseen(0.0, LEAD, 85.0) == 0


def test_weeks_without_repetition_make_nothing_foreseen() -> None:
    history = bench.no_repetition(np.random.default_rng(1))
    slots = np.arange(0.0, bench.SECONDS, 600.0)

    assert sum(history.until(at).foreseen(at, LEAD, 85.0) > 0 for at in slots) <= 1


def test_a_weekday_rises_once_and_falls_in_the_evening() -> None:
    traffic = bench.weekday(np.random.default_rng(2))
    counts, _ = np.histogram(traffic.arrival + bench.BEGINS, np.arange(6, 21) * bench.HOUR)

    assert np.all(np.diff(traffic.arrival) >= 0)
    busy = counts > 0.5 * np.max(counts)
    assert busy.tolist() == [8 <= hour < 18 for hour in range(6, 20)]

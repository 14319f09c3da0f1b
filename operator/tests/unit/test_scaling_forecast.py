"""Tests the forecast: ramps that come at the same time are foreseen, and nothing else is."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from llmservice_operator.api.calibration import HISTORY_SLOTS
from llmservice_operator.scaling.assess import ScalingState
from llmservice_operator.scaling.calibration import calibration_of, has_moved, resumed
from llmservice_operator.scaling.forecast import SLOT_SECONDS, LoadHistory
from llmservice_operator.scaling.step_model import StepModelFit
from operator_support.scaling import TRUTH, Server, Service, service

HOUR, DAY = 3600.0, 86_400.0
MONDAY = 4 * DAY
"""The first Monday after the beginning of 1970."""
LEAD = 90.0


def weekdays(at: float) -> float:
    """Return a load that rises from 100 to 900 % at eight o'clock on weekdays."""
    day, hour = math.floor(at / DAY), at % DAY / HOUR
    is_weekday = (day - 4) % 7 < 5
    return 900.0 if is_weekday and 8 <= hour < 18 else 100.0


def watched(load: Callable[[float], float], days: float, noise: float = 0.1) -> LoadHistory:
    """Return the history of so many days, which begin on a Monday."""
    rng, history = random.Random(1), LoadHistory()
    for i in range(int(days * DAY / 300)):
        at = MONDAY + 300.0 * i
        history = history.add(at, load(at) * (1 + noise * rng.uniform(-1, 1)))
    return history


def foreseen(history: LoadHistory, at: float) -> float:
    return history.until(at).foreseen(at, LEAD, 85.0)


def test_a_ramp_that_came_on_most_days_is_foreseen_one_lead_before_it() -> None:
    tuesday = MONDAY + 15 * DAY
    history = watched(weekdays, 15)

    assert foreseen(history, tuesday + 8 * HOUR - LEAD - 10) == 0
    assert 800 < foreseen(history, tuesday + 8 * HOUR - LEAD) <= 990
    assert foreseen(history, tuesday + 9 * HOUR) == 0


def test_nothing_is_foreseen_before_a_whole_week_was_watched() -> None:
    eight = MONDAY + 6 * DAY + 8 * HOUR

    def every_day(at: float) -> float:
        return weekdays(MONDAY + at % DAY)

    assert foreseen(watched(every_day, 6), eight) == 0
    assert foreseen(watched(every_day, 7.2), eight + DAY) > 800


@pytest.mark.parametrize("day", [5, 6])
def test_a_ramp_of_weekdays_is_not_foreseen_at_the_weekend(day: int) -> None:
    at = MONDAY + (14 + day) * DAY + 8 * HOUR

    assert foreseen(watched(weekdays, 14 + day), at) == 0


def test_a_ramp_of_one_day_of_the_week_is_foreseen_after_two_weeks() -> None:
    def mondays(at: float) -> float:
        return weekdays(at) if math.floor(at / DAY) % 7 == 4 else 100.0

    history = watched(mondays, 14)
    assert foreseen(history, MONDAY + 14 * DAY + 8 * HOUR) > 800
    assert foreseen(watched(mondays, 15), MONDAY + 15 * DAY + 8 * HOUR) == 0


def test_a_forecast_is_at_most_the_height_of_most_ramps() -> None:
    def one_is_high(at: float) -> float:
        return 10 * weekdays(at) if math.floor(at / DAY) == 4 + 11 else weekdays(at)

    history = watched(one_is_high, 14, noise=0.0)

    assert foreseen(history, MONDAY + 14 * DAY + 8 * HOUR) <= 900


def test_a_ramp_that_begins_some_minutes_earlier_or_later_each_day_is_foreseen() -> None:
    def late(at: float) -> float:
        return weekdays(at - 600 * (math.floor(at / DAY) % 2))

    assert foreseen(watched(late, 15), MONDAY + 15 * DAY + 8 * HOUR + 600) > 800


def test_a_ramp_that_came_early_on_some_days_is_foreseen_ten_minutes_earlier() -> None:
    def early(at: float) -> float:
        return weekdays(at + 300 if math.floor(at / DAY) % 7 in (5, 6) else at)

    before = MONDAY + 15 * DAY + 7 * HOUR + 3000

    assert foreseen(watched(weekdays, 15), before - LEAD) == 0
    assert foreseen(watched(early, 15), before - LEAD - 10) == 0
    assert 800 < foreseen(watched(early, 15), before - LEAD) <= 990
    assert 800 < foreseen(watched(early, 15), before + 300) <= 990


def test_a_weekly_ramp_that_came_ten_minutes_later_a_week_ago_is_foreseen() -> None:
    def mondays(at: float) -> float:
        late = 600 if at >= MONDAY + 7 * DAY else 0
        return weekdays(at - late) if math.floor(at / DAY) % 7 == 4 else 100.0

    assert foreseen(watched(mondays, 14), MONDAY + 14 * DAY + 8 * HOUR + 600) > 800


def test_a_ramp_that_came_again_by_chance_is_not_foreseen() -> None:
    def at_random(at: float) -> float:
        hours = at % DAY / HOUR
        # Three ramps a day, of which only the one at eight o'clock comes on both Mondays.
        begins = (2, 8, 15) if at < MONDAY + 7 * DAY else (5, 8, 20)
        return 900.0 if any(hour <= hours < hour + 1 for hour in begins) else 100.0

    def on_mondays(at: float) -> float:
        return at_random(at) if math.floor(at / DAY) % 7 == 4 else 100.0

    assert foreseen(watched(on_mondays, 14), MONDAY + 14 * DAY + 8 * HOUR) == 0


@pytest.mark.parametrize("spread", [0.1, 0.5, 0.9])
def test_a_load_without_repetition_has_no_forecast(spread: float) -> None:
    rng = random.Random(2)
    history = watched(lambda at: 500 * math.exp(rng.gauss(0, spread)), 21)
    slots = [MONDAY + 20 * DAY + SLOT_SECONDS * i for i in range(144)]

    assert sum(history.foreseen(at, LEAD, 85.0) > 0 for at in slots) <= 2


def test_a_smooth_rise_over_hours_is_left_to_the_trend() -> None:
    def wave(at: float) -> float:
        return 500 - 400 * math.cos(2 * math.pi * at / DAY)

    history = watched(wave, 15, noise=0.0)
    slots = [MONDAY + 15 * DAY + SLOT_SECONDS * i for i in range(36, 144)]

    assert all(foreseen(history, at) == 0 for at in slots)


def test_an_unknown_load_is_no_low_load() -> None:
    history = LoadHistory()
    for day in range(14):
        # The load is known only from eight o'clock.
        for i in range(60):
            history = history.add(MONDAY + day * DAY + 8 * HOUR + 600 * i, 900.0)

    assert foreseen(history, MONDAY + 14 * DAY + 8 * HOUR) == 0


def test_a_history_keeps_two_weeks() -> None:
    history = watched(weekdays, 30)

    assert len(history.levels) == HISTORY_SLOTS
    assert history.levels == watched(weekdays, 30).levels


def test_a_foreseen_ramp_raises_the_demand_and_never_lowers_it() -> None:
    running = service(2)
    running.now = MONDAY + 15 * DAY + 8 * HOUR - 600
    for server in running.servers:
        server.started = running.now
    running.state = replace(running.state, history=watched(weekdays, 15))

    early = running.run(300, rate=14)
    assert early.foreseen_percent == 0
    assert early.demand_percent is not None
    assert early.demand_percent < 2 * 85
    late = running.run(300, rate=14)
    assert late.foreseen_percent > 800
    assert late.demand_percent == late.foreseen_percent
    high = running.run(120, rate=140)
    assert high.demand_percent is not None
    assert high.demand_percent > high.foreseen_percent


def test_without_forecasts_nothing_is_foreseen_and_nothing_is_kept() -> None:
    running = service(2)
    running.now = MONDAY + 15 * DAY + 8 * HOUR - 400
    running.forecasts = False
    running.state = replace(running.state, history=watched(weekdays, 15))

    seen = running.run(400, rate=14)

    assert seen.foreseen_percent == 0
    assert running.state.history == LoadHistory()
    learned = calibration_of(running.state)
    assert learned is not None
    assert learned.load_history is None


def test_a_calibration_carries_the_history_and_is_written_every_hour() -> None:
    running = service(2)
    running.run(300, rate=14)
    history = watched(weekdays, 15)
    running.state = replace(running.state, history=history)
    learned = calibration_of(running.state)
    assert learned is not None
    state = resumed(ScalingState(StepModelFit(TRUTH)), learned)

    assert state.history == replace(history, highest=None)
    for minutes, is_due in ((40, False), (50, True)):
        later = replace(running.state, history=history.until(MONDAY + 15 * DAY + 60 * minutes))
        now = calibration_of(later)
        assert now is not None
        assert has_moved(now, learned) is is_due


def test_a_new_process_continues_the_history_of_the_one_before() -> None:
    state = replace(ScalingState(StepModelFit(TRUTH)), history=watched(weekdays, 15))
    at = MONDAY + 15 * DAY + 7 * HOUR
    running = Service([Server("a", started=at), Server("b", started=at)], at, state)
    running.run(1200, rate=14)

    assert running.state.history.slot == math.floor(running.now / SLOT_SECONDS)
    assert len(running.state.history.levels) == HISTORY_SLOTS


def test_a_history_from_the_future_is_dropped_and_one_from_a_fast_clock_is_kept() -> None:
    history = watched(weekdays, 15)
    now = MONDAY + 15 * DAY
    assert history.until(now - HOUR).levels == history.levels

    wrong = replace(history, slot=10**9).add(now, 300.0)
    assert wrong.levels == b""
    assert len(wrong.add(now + SLOT_SECONDS, 300.0).levels) == 1


def test_percents_of_another_engine_are_no_history() -> None:
    state = ScalingState(StepModelFit(TRUTH), history=watched(weekdays, 15))
    assert state.with_new_engine(0.0, TRUTH).history == state.history
    assert state.with_new_engine(0.0, TRUTH, keeps_history=False).history == LoadHistory()

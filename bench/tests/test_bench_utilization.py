"""Tests that the utilization bench finds an unknown capacity, and that the verdict takes the
uncertainty of the capacity into account.
"""

import random
from dataclasses import replace
from itertools import islice

import pytest

from llmservice_operator.scaling.conditions import ServiceLevelObjective
from llmservice_operator.scaling.signals import Counters
from llmservice_operator.scaling.step_model import StepModel
from operator_support.scaling import step_sums
from utilization.experiment import Reading, Traffic, learned
from utilization.gate import line, own_line
from utilization.mixes import Mix
from utilization.traffic import Answer, Level
from utilization.truth import Trial, Truth, estimate, next_rate

SLO = ServiceLevelObjective(0.5, 0.05)
STEP = StepModel(0.01, 1e-4, 1e-3, 1e-7)
PACE = STEP.fixed + STEP.sequence
"""Usual duration in seconds of a step of the probe."""
FAST, SLOW = Answer(0.1, 0.02), Answer(0.1, 0.06)

READING = Reading(
    "model",
    "mix",
    offered=5.0,
    truth=Truth(10.0, 9.9, 10.1),
    utilization=52.0,
    busy=99.0,
    kv_usage=1.0,
    batch_share=2.0,
    attainment=100.0,
    step_time=100.0,
    own_utilization=51.0,
)


def level(rate: float, met: int, missed: int = 0) -> Level:
    return Level(rate, 16.0, Counters(), [FAST] * met + [SLOW] * missed, [], PACE)


def trial(rate: float, capacity: float, requests: int = 400) -> Trial:
    """Return a trial whose odds of a miss grow as rate^10 and are 1 to 19 at the capacity."""
    odds = (rate / capacity) ** 10 / 19
    return Trial(rate, requests, round(requests * odds / (1 + odds)))


def _doubt(truth: Truth) -> float:
    return truth.high / truth.low - 1


@pytest.mark.parametrize("guess", [0.5, 7.0, 40.0])
def test_the_capacity_is_found_from_any_guess(guess: float) -> None:
    trials: list[Trial] = []
    for _ in range(16):
        trials.append(trial(next_rate(trials, 0.95, guess), 7.3))

    truth = estimate(trials, 0.95)

    assert truth.capacity == pytest.approx(7.3, rel=0.03)
    assert truth.low < 7.3 < truth.high < 1.1 * truth.low


def test_the_less_the_trials_agree_the_less_is_known() -> None:
    rates = [6.0, 6.5, 7.0, 7.5, 8.0, 8.5]
    agreeing = estimate([trial(rate, 7.3) for rate in rates], 0.95)
    capacities = [8.0, 6.6, 8.0, 6.6, 8.0, 6.6]
    others = estimate([trial(*each) for each in zip(rates, capacities, strict=True)], 0.95)

    assert _doubt(others) > 2 * _doubt(agreeing)


def test_few_requests_tell_little() -> None:
    rates = [6.0, 6.5, 7.0, 7.5, 8.0, 8.5]
    many, few = (estimate([trial(it, 7.3, count) for it in rates], 0.95) for count in (4000, 40))

    assert _doubt(few) > 3 * _doubt(many)


def test_a_few_requests_are_as_heavy_as_many_and_no_two_alike() -> None:
    mix = Mix("mixed", 110, 40)
    for seed in (1, 2):
        chance = random.Random(seed)
        some = list(islice(mix.requests(40, chance), 80))
        for half in (some[:40], some[40:]):
            assert sum(len(prompt) for prompt, _ in half) / 40 == pytest.approx(110, rel=0.03)
            assert sum(answer for _, answer in half) / 40 == pytest.approx(40, rel=0.03)
        assert [len(prompt) for prompt, _ in some[:40]] != [len(prompt) for prompt, _ in some[40:]]
        assert len({tuple(prompt) for prompt, _ in some}) == 80


def test_a_machine_that_never_meets_the_slo_is_told_and_not_measured() -> None:
    trials = [Trial(0.06, 9, 9)]
    with pytest.raises(RuntimeError, match="busy otherwise"):
        next_rate(trials, 0.95, 5.0)


def test_a_level_without_requests_is_no_attainment() -> None:
    with pytest.raises(RuntimeError, match="measure for longer"):
        level(1.0, 0).attainment(SLO)


@pytest.mark.parametrize(
    ("answer", "met"),
    [
        pytest.param(Answer(0.5, 0.05), True, id="just in time"),
        pytest.param(Answer(0.51, 0.01), False, id="first token too late"),
        pytest.param(Answer(0.1, 0.051), False, id="tokens too slow"),
        pytest.param(Answer(), False, id="never answered"),
    ],
)
def test_a_request_meets_the_slo_by_both_of_its_times(answer: Answer, met: bool) -> None:
    assert answer.meets(SLO) is met


def _level_on(slowness: float, rate: float, itl: float, probed: float | None = None) -> Level:
    """Return a level of 400 requests on a machine whose steps take `slowness` times as long.

    `probed` is this factor according to the probes, which differ by chance.
    """
    counters = Counters(steps=step_sums([(20.0, 5.0, 3000.0)] * 1000, _slower(slowness)))
    answers = [Answer(0.1, slowness * itl)] * 400
    pace = PACE * (slowness if probed is None else probed)
    return Level(rate, 400 / rate, counters, answers, [], pace)


def _slower(factor: float) -> StepModel:
    return StepModel(*(factor * each for each in STEP.coefficients))


def _trials(levels: list[Level], model: StepModel) -> list[Trial]:
    return Traffic(Mix("any", 10, 10), levels=levels).trials(SLO, model, PACE)


def test_a_slow_minute_counts_as_more_load_met_with_more_patience() -> None:
    usual = [_level_on(1.0, rate, 0.04) for rate in (9.0, 10.0, 11.0, 12.0)]
    missed = _level_on(1.0, 14.0, 0.055)
    slow = _level_on(1.2, 10.0, 0.049)

    trials = _trials([*usual, missed, slow], STEP)

    assert [it.rate for it in trials] == pytest.approx([9, 10, 11, 12, 14, 12], rel=0.01)
    assert [it.missed for it in trials] == [0, 0, 0, 0, 400, 0]


@pytest.mark.parametrize("error", [0.8, 1.0, 1.3])
def test_an_error_of_the_step_model_for_a_traffic_is_no_slowness(error: float) -> None:
    levels = [_level_on(1.0, rate, 0.04) for rate in (9.0, 10.0, 11.0)]

    trials = _trials(levels, _slower(error))

    assert [it.rate for it in trials] == pytest.approx([9.0, 10.0, 11.0])


def test_the_chance_of_a_single_probe_decides_nothing() -> None:
    probed = (0.9, 1.1, 0.95, 1.05)
    levels = [_level_on(1.0, 10.0, 0.04, probed=each) for each in probed]

    trials = _trials(levels, STEP)

    assert [it.rate for it in trials] == pytest.approx([10.0] * 4)


@pytest.mark.parametrize("searching", [0.75, 1.0, 1.3])
@pytest.mark.parametrize("learning", [0.75, 1.0, 1.3])
def test_the_speed_of_the_machine_while_it_is_measured_decides_nothing(
    learning: float, searching: float
) -> None:
    lessons = [
        Level(
            1.0,
            8.0,
            Counters(steps=step_sums(steps, _slower(learning))),
            [],
            [],
            learning * PACE,
        )
        for steps in (
            [(0.0, float(number), 300.0 * number) for number in range(1, 30)] * 40,
            [(16.0 * number, 4.0, 900.0) for number in range(1, 30)] * 40,
        )
    ]
    model = learned(STEP, lessons, PACE)
    assert model.coefficients == pytest.approx(STEP.coefficients, rel=0.02)

    levels = [_level_on(searching, rate / searching, 0.04) for rate in (9.0, 9.5)]
    levels += [_level_on(searching, rate / searching, 0.06) for rate in (10.5, 11.0)]
    usual = [Trial(9.0, 400, 0), Trial(9.5, 400, 0), Trial(10.5, 400, 400), Trial(11.0, 400, 400)]
    found, expected = estimate(_trials(levels, model), 0.95), estimate(usual, 0.95)
    assert found.capacity == pytest.approx(expected.capacity, rel=0.02)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        pytest.param([READING], "PASS", id="all of the interval below the limit"),
        pytest.param([READING, replace(READING, utilization=60.0)], "FAIL", id="one above it"),
        pytest.param(
            [replace(READING, truth=Truth(10.0, 8.0, 12.0))],
            "UNDECIDED",
            id="the truth not known enough",
        ),
        pytest.param([], "FAIL", id="nothing measured"),
    ],
)
def test_the_gate_says_what_the_interval_allows(found: list[Reading], verdict: str) -> None:
    assert line(found).split("  ")[0].split()[-1] == verdict


def test_the_error_is_told_in_percent_of_the_true_load() -> None:
    assert READING.load == pytest.approx(50.0, abs=0.1)
    assert READING.error == pytest.approx(4.0, abs=0.1)


def test_what_the_same_traffic_would_teach_is_told_beside_the_gate() -> None:
    found = [READING, replace(READING, own_utilization=46.0)]

    assert "off by 8.0 % at most" in own_line(found)

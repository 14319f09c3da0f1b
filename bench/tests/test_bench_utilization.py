"""The bench of the utilization finds a capacity nobody told it, and judges by what it knows."""

from dataclasses import replace

import pytest

from llmservice_operator.scaling.capacity import ServiceLevelObjective
from llmservice_operator.scaling.signals import Counters
from utilization.experiment import Reading, Truth, find_capacity
from utilization.gate import line
from utilization.traffic import Answer, Level

SLO = ServiceLevelObjective(0.5, 0.05)
FAST, SLOW = Answer(0.1, 0.02), Answer(0.1, 0.06)

READING = Reading(
    "model",
    "mix",
    offered=5.0,
    truth=Truth(9.9, 10.1),
    utilization=52.0,
    busy=99.0,
    kv_usage=1.0,
    batch_share=2.0,
    attainment=100.0,
)


def level(rate: float, met: int, missed: int = 0) -> Level:
    return Level(rate, 16.0, Counters(), [FAST] * met + [SLOW] * missed, [])


@pytest.mark.parametrize("guess", [0.5, 7.0, 40.0])
def test_the_capacity_is_found_from_any_guess(guess: float) -> None:
    def measure(rate: float, _seed: int) -> Level:
        return level(rate, 97, 3) if rate < 7.3 else level(rate, 90, 10)

    truth = find_capacity(measure, guess, SLO)

    assert truth.met < 7.3 <= truth.missed
    assert truth.missed / truth.met < 1.08


def test_a_machine_that_never_meets_the_slo_is_told_and_not_measured() -> None:
    with pytest.raises(RuntimeError, match="busy otherwise"):
        find_capacity(lambda rate, _: level(rate, 0, 9), 5.0, SLO)


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


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        pytest.param([READING], "PASS", id="all of the interval below the limit"),
        pytest.param([READING, replace(READING, utilization=60.0)], "FAIL", id="one above it"),
        pytest.param(
            [replace(READING, truth=Truth(8.0, 12.0))], "UNDECIDED", id="the truth not known enough"
        ),
        pytest.param([], "FAIL", id="nothing measured"),
    ],
)
def test_the_gate_says_what_the_interval_allows(found: list[Reading], verdict: str) -> None:
    assert line(found).split("  ")[0].split()[-1] == verdict


def test_the_error_is_told_in_percent_of_the_true_load() -> None:
    assert READING.load == pytest.approx(50.0, abs=0.1)
    assert READING.error == pytest.approx(4.0, abs=0.1)

"""Tests the verdicts on the model server: the bounds of an interval, and its coverage."""

import math
import random

import pytest

from serving.gates import GATES, Gate, Interval, Ratios, lines, paired_ratio

FASTER = Gate("faster", 0.98, at_least=True)
CHEAPER = Gate("cheaper", 1.05, at_least=False)


@pytest.mark.parametrize(
    ("gate", "low", "high", "verdict"),
    [
        (FASTER, 0.98, 1.2, "PASS"),
        (FASTER, 0.9, 0.979, "FAIL"),
        (FASTER, 0.97, 1.01, "UNDECIDED (width 0.040)"),
        (CHEAPER, 0.9, 1.05, "PASS"),
        (CHEAPER, 1.051, 1.2, "FAIL"),
        (CHEAPER, 1.0, 1.1, "UNDECIDED (width 0.100)"),
    ],
)
def test_a_gate_decides_only_when_the_whole_interval_is_on_one_side(
    gate: Gate, low: float, high: float, verdict: str
) -> None:
    assert gate.verdict(Interval((low + high) / 2, low, high)) == verdict


def test_a_gate_that_was_not_measured_has_failed() -> None:
    told = lines({"throughput_plain": Ratios(Interval(1.0, 0.99, 1.01), Interval(1, 0.98, 1.02))})

    assert [line.split()[1] for line in told] == [gate.name for gate in GATES]
    assert told[0] == (
        "GATE throughput_plain 1.000 [0.990, 1.010] >=0.98 PASS  stock/stock 1.000 [0.980, 1.020]"
    )
    assert all(" missing " in line and line.endswith(" FAIL") for line in told[1:])


def test_four_pairs_decide_nothing_and_five_do() -> None:
    assert paired_ratio([2.0] * 4, [1.0] * 4) is None
    assert paired_ratio([2.0] * 5, [1.0] * 5) == Interval(2.0, 2.0, 2.0)


def test_the_bounds_are_those_of_the_published_table() -> None:
    # For 20 pairs and 5 % on each side, the signed-rank table gives 60. So the ends of the interval
    # are the 61st lowest and the 61st highest mean of two values.
    logs = [math.sqrt(number) for number in range(20)]
    means = sorted((a + b) / 2 for i, a in enumerate(logs) for b in logs[i:])

    found = paired_ratio([math.exp(each) for each in logs], [1.0] * 20)

    assert found is not None
    assert math.log(found.low) == pytest.approx(means[60])
    assert math.log(found.high) == pytest.approx(means[-61])


@pytest.mark.parametrize("noise", ["even", "with disturbed runs"])
def test_nine_of_ten_intervals_hold_the_true_ratio_also_where_both_of_a_pair_are_slowed(
    noise: str,
) -> None:
    chance = random.Random(7)

    def one_run() -> float:
        disturbed = noise != "even" and chance.random() < 0.1
        return math.exp(chance.gauss(0, 0.5 if disturbed else 0.05))

    trials, held, widths = 1000, 0, []
    for _ in range(trials):
        machine = [chance.uniform(1, 3) for _ in range(20)]
        stock = [slow * one_run() for slow in machine]
        ours = [0.9 * slow * one_run() for slow in machine]
        found = paired_ratio(ours, stock)
        assert found is not None
        held += found.low <= 0.9 <= found.high
        widths.append(found.high - found.low)

    assert 0.88 <= held / trials <= 0.93
    assert sum(widths) / trials < 0.12


def test_one_disturbed_pair_moves_the_ratio_little() -> None:
    calm = paired_ratio([1.0 + i / 1000 for i in range(20)], [1.0] * 20)
    disturbed = paired_ratio([9.0] + [1.0 + i / 1000 for i in range(1, 20)], [1.0] * 20)

    assert calm is not None
    assert disturbed is not None
    assert disturbed.middle == pytest.approx(calm.middle, abs=0.002)
    assert disturbed.high < 1.02

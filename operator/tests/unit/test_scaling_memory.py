"""Tests what scaling remembers: ticks, fitted lines, cold starts, κ, windows and calibrations."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import pstdev
from typing import Any

import pytest

from llmservice_operator.api.calibration import LENGTH_BUCKETS, Calibration, UnmetDemand
from llmservice_operator.scaling.assess import ScalingState
from llmservice_operator.scaling.calibration import (
    calibration_of,
    has_moved,
    resumed,
    shortest_period,
    with_calibration,
)
from llmservice_operator.scaling.capacity_factor import CapacityFactor, Evidence
from llmservice_operator.scaling.cold_start import ColdStarts
from llmservice_operator.scaling.demand import demand
from llmservice_operator.scaling.hpa import PolicyType
from llmservice_operator.scaling.ledger import Ledger, Tick, fit_line, step_residuals
from llmservice_operator.scaling.load import STEADY_SECONDS, Price, RecentLoad
from llmservice_operator.scaling.recommend import behavior_for
from llmservice_operator.scaling.scale_down import UndoneScaleDowns, scale_down_window
from llmservice_operator.scaling.signals import STEP_MOMENTS, Counters, StepSums, Tally
from llmservice_operator.scaling.step_model import StepModelFit
from operator_support.scaling import TRUTH, Server, Service, service


def test_a_ledger_sums_the_last_seconds_and_forgets_after_ten_minutes() -> None:
    ledger = Ledger()
    for i in range(1, 201):
        ledger = ledger.add(Tick(5.0 * i, 5.0, Tally(arrivals=i)))

    assert ledger.last(10).done.arrivals == 199 + 200
    assert ledger.last(10).seconds == 10
    assert ledger.ticks[0].at > 1000 - 600
    assert Ledger().last(60).seconds == 0


def test_a_ledger_joins_old_ticks_and_loses_nothing() -> None:
    ledger, ticks = Ledger(), 120
    for i in range(1, ticks + 1):
        ledger = ledger.add(Tick(5.0 * i, 5.0, Tally(arrivals=i)))

    assert len(ledger.ticks) < ticks / 2
    assert sum(tick.seconds for tick in ledger.ticks) == 5.0 * ticks
    assert sum(tick.done.arrivals for tick in ledger.ticks) == sum(range(1, ticks + 1))
    assert ledger.last(60).done.arrivals == sum(range(ticks - 11, ticks + 1))
    assert ledger.without_last().last(60).done.arrivals == sum(range(ticks - 12, ticks))


def test_most_amounts_of_a_difference_of_histograms_are_one_object() -> None:
    difference = ONES.plus(ONES, -1.0)

    assert len({id(amount) for amount in difference.prompt_lengths}) == 1


def of_ones() -> Counters:
    """Return counters in which every number is 1."""
    amounts: dict[str, Any] = {
        name: (1.0,) * LENGTH_BUCKETS if name.endswith("lengths") else 1.0
        for name in Counters.__match_args__
    }
    return Counters(**amounts | {"steps": StepSums((1.0,) * STEP_MOMENTS)})


ONES = of_ones()


def test_counters_add_every_field_that_they_declare() -> None:
    assert ONES.plus(ONES, -1.0) == Counters()
    assert ONES.times(2.0).plus(ONES) == ONES.times(3.0)
    assert ONES.times(2.0).steps.moments == (2.0,) * STEP_MOMENTS


def test_a_tally_is_the_part_of_the_counters_that_the_ledger_keeps() -> None:
    tally = Tally.of(replace(ONES, arrivals=5.0))

    assert tally == Tally(5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert Counters.of(tally).finished == 0.0


def test_a_line_is_found_with_its_error() -> None:
    line = fit_line([(0, 1), (1, 3), (2, 5), (3, 7)])

    assert line.slope == pytest.approx(2)
    assert line.slope_error == pytest.approx(0, abs=1e-9)


def test_a_step_fits_a_step_better_than_a_line() -> None:
    values = [1.0] * 20 + [4.0] * 20

    assert step_residuals(values) == pytest.approx(0, abs=1e-9)
    assert fit_line(list(enumerate(values))).squared_residuals > 1


def test_a_cold_start_is_a_high_percentile_of_the_last_twenty() -> None:
    seen = ColdStarts()
    assert seen.estimate == 120
    for seconds in [500.0] * 5 + [float(s) for s in range(60, 80)]:
        seen = seen.add(0.0, 0.0, seconds)

    assert len(seen.seconds) == 20
    assert seen.estimate == 77


def test_hours_until_a_repair_are_no_cold_start() -> None:
    seen = ColdStarts().add(0.0, 0.0, 60.0)

    assert seen.add(0.0, 0.0, 6 * 3600.0).estimate == 60
    assert seen.add(0.0, 0.0, 3000.0).estimate == 3000


def test_one_long_wait_for_a_node_changes_neither_the_cold_start_nor_the_usual_wait() -> None:
    seen = ColdStarts()
    for wait in (20.0, 20.0, 2400.0, 20.0, 20.0):
        seen = seen.add(0.0, wait, wait + 60.0)

    assert (seen.estimate, seen.node_wait) == (60, 20)
    assert scale_down_window(seen.estimate, is_bursty=False) == 90


def test_the_longest_start_includes_the_waits_of_the_first_replicas_in_the_morning() -> None:
    seen = ColdStarts()
    assert seen.longest_start == 120
    for wait in [0.0] * 17 + [300.0] * 3:
        seen = seen.add(0.0, wait, wait + 60.0)

    assert (seen.node_wait, seen.longest_start) == (0, 360)
    assert seen.add(0.0, 2400.0, 2460.0).longest_start == 360


def test_replicas_that_usually_wait_for_a_node_are_requested_that_much_earlier() -> None:
    ledger = Ledger()
    for i in range(1, 61):
        ledger = ledger.add(Tick(5.0 * i, 5.0, Tally(arrivals=50 + i)))
    price = Price(1.0, 0.0, 0.1, 1.0, 1.0, 1.0)

    early, late = (
        demand(RecentLoad(ledger, price), (), 0, 9, 60.0, wait).trend for wait in (75.0, 0.0)
    )

    assert early == pytest.approx(2 * late)
    assert late > 0


@pytest.mark.parametrize(
    ("cold_start", "bursty", "window"),
    [(10, False, 90), (100, False, 150), (1000, False, 600), (10, True, 600)],
)
def test_the_window_is_one_and_a_half_cold_starts_within_bounds(
    cold_start: float, bursty: bool, window: float
) -> None:
    assert scale_down_window(cold_start, bursty) == window


def undone_after(*seen: tuple[float, int, float], is_steady: bool = True) -> UndoneScaleDowns:
    """Return the undone scale-downs after looks at (time, replicas, wanted replicas)."""
    undone = UndoneScaleDowns()
    for now, replicas, wanted in seen:
        undone = undone.add(now, replicas, wanted, is_steady=is_steady)
    return undone


FALL = ((0.0, 5, 3.9), (60.0, 4, 3.9))


def test_each_scale_down_that_a_scale_up_undoes_lengthens_the_window_for_an_hour() -> None:
    once = (*FALL, (300, 4, 4.1), (310, 5, 4.0))
    twice = (*once, (1500, 4, 3.9), (1600, 4, 4.1), (1610, 5, 4.1))

    assert scale_down_window(80, False, undone_after(*once)) == 8 * 120
    assert scale_down_window(80, False, undone_after(*twice)) == 1800
    assert scale_down_window(80, False, undone_after(*once, (3911, 5, 3.9))) == 120


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(((0, 4, 3.9), (300, 4, 4.1), (310, 5, 4.1)), id="no scale-down"),
        pytest.param((*FALL, (961, 4, 4.1), (971, 5, 4.1)), id="long after"),
        pytest.param((*FALL, (300, 4, 4.1), (305, 4, 3.9)), id="no scale-up"),
        pytest.param((*FALL, (300, 5, 3.9), (310, 4, 3.9), (320, 5, 3.9)), id="a rollout"),
    ],
)
def test_other_changes_of_the_replicas_leave_the_window(
    seen: tuple[tuple[float, int, float], ...],
) -> None:
    assert scale_down_window(80, False, undone_after(*seen)) == 120


def test_a_scale_up_for_a_load_that_changes_leaves_the_window() -> None:
    undone = undone_after(*FALL, (300, 4, 4.1), (310, 5, 4.0), is_steady=False)

    assert scale_down_window(80, False, undone) == 120


def loads_of_minutes(mean: Callable[[float], float], seconds: float) -> Iterator[Ledger]:
    """Yield the ledger after each scrape, of independent requests whose mean number a second
    changes with time.
    """
    rng, ledger = random.Random(7), Ledger()
    for i in range(1, int(seconds / 5) + 1):
        expected = 5.0 * mean(5.0 * i)
        arrivals = max(0.0, rng.gauss(expected, math.sqrt(expected)))
        ledger = ledger.add(Tick(5.0 * i, 5.0, Tally(arrivals=arrivals)))
        yield ledger


def load_of_minutes(mean: Callable[[float], float], seconds: float = 600) -> Ledger:
    return list(loads_of_minutes(mean, seconds))[-1]


@pytest.mark.parametrize(
    ("mean", "is_steady", "is_bursty"),
    [
        pytest.param(lambda at: 8.0, True, False, id="constant"),
        pytest.param(lambda at: 6.0 + at / 150, False, False, id="ramp"),
        pytest.param(lambda at: 8.0 if at < 400 else 12.0, False, False, id="step"),
        pytest.param(lambda at: 8.0 + 3 * math.sin(at / 60), False, False, id="wave"),
        pytest.param(lambda at: 16.0 if at % 120 < 60 else 0.0, False, True, id="bursts"),
    ],
)
def test_only_a_load_that_noise_explains_is_steady(
    mean: Callable[[float], float], is_steady: bool, is_bursty: bool
) -> None:
    price = Price(0.1, 0.0, 0.1, 1.0, 1.0, 1.0)

    found = RecentLoad(load_of_minutes(mean), price).variation

    assert found is not None
    assert (found.is_steady, found.is_bursty) == (is_steady, is_bursty)


def test_the_variation_of_a_load_is_unknown_before_five_minutes_and_of_no_load() -> None:
    price = Price(0.1, 0.0, 0.1, 1.0, 1.0, 1.0)

    assert RecentLoad(load_of_minutes(lambda at: 8.0, 290), price).variation is None
    assert RecentLoad(load_of_minutes(lambda at: 0.0), price).variation is None
    assert RecentLoad(Ledger(), price).variation is None


def test_the_noise_of_a_minute_changes_a_constant_load_little() -> None:
    # 8 requests/s at 0.1 replica-seconds keep 0.8 replicas busy.
    price = Price(0.1, 0.0, 0.1, 1.0, 1.0, 1.0)
    ledgers = list(loads_of_minutes(lambda at: 8.0, 7200))[120:]

    minutes = [price.arrived(it.last(STEADY_SECONDS)) for it in ledgers]
    loads = [RecentLoad(it, price).present for it in ledgers]

    assert pstdev(loads) < pstdev(minutes) / 2
    # At its target, one replica serves a load of 0.85.
    assert sum(it > 0.85 for it in loads) < sum(it > 0.85 for it in minutes) / 4


@pytest.mark.parametrize("factor", [0.5, 1.4, 3.0])
def test_a_load_that_has_changed_is_measured_over_the_last_minute(factor: float) -> None:
    price = Price(0.1, 0.0, 0.1, 1.0, 1.0, 1.0)
    changed = load_of_minutes(lambda at: 8.0 if at <= 480 else 8.0 * factor)

    assert RecentLoad(changed, price).present == pytest.approx(0.8 * factor, rel=0.1)


def test_an_undone_scale_down_leaves_the_window_of_a_bursty_load() -> None:
    once = undone_after(*FALL, (300, 4, 4.1), (310, 5, 4.1))

    assert scale_down_window(80, True, once) == scale_down_window(80, True)


QUIET = Evidence(
    judged=100.0,
    missed=0.0,
    allowed=0.05,
    unrepairable=0.0,
    expected=0.0,
    utilization=0.8,
    has_backlog=False,
    memory_seconds=60.0,
)


def look(factor: CapacityFactor, now: float, **change: Any) -> CapacityFactor:
    return factor.corrected(now, replace(QUIET, **change))


@pytest.mark.parametrize(
    ("change", "value"),
    [
        pytest.param({"missed": 0.10}, 0.8 * 0.975, id="misses lower it by half the excess"),
        pytest.param({"missed": 0.90}, 0.8 * 0.95, id="but never faster than five percent"),
        pytest.param({}, 0.8 * 1.01, id="few misses raise it"),
        pytest.param({"missed": 0.04}, 0.8, id="some misses leave it"),
        pytest.param({"utilization": 0.5}, 0.8, id="an idle service proves nothing"),
        pytest.param({"missed": 0.9, "utilization": 0.95}, 0.8, id="a full service must miss"),
        pytest.param({"missed": 0.9, "has_backlog": True}, 0.8, id="a backlog explains misses"),
        pytest.param({"missed": 0.9, "judged": 19.0}, 0.8, id="too few requests"),
        pytest.param(
            {"missed": 0.4, "expected": 0.5}, 0.8, id="fewer misses than the model expects"
        ),
        pytest.param(
            {"missed": 0.32, "unrepairable": 0.3}, 0.8, id="what an idle replica misses too"
        ),
    ],
)
def test_the_capacity_factor_follows_misses(change: dict[str, Any], value: float) -> None:
    assert look(CapacityFactor(0.8), 100.0, **change).value == pytest.approx(value)


def test_the_capacity_factor_moves_every_fifteen_seconds_at_most() -> None:
    moved = look(CapacityFactor(0.8), 100.0, missed=0.2)

    assert look(moved, 110.0, missed=0.2) == moved
    assert look(moved, 115.0, missed=0.2).value < moved.value


def test_the_capacity_factor_rests_after_an_overload() -> None:
    full = look(CapacityFactor(0.8), 100.0, utilization=1.0)

    assert look(full, 150.0, missed=0.5).value == 0.8
    assert look(full, 161.0, missed=0.5).value < 0.8


def test_the_capacity_factor_stays_in_its_bounds() -> None:
    low, recovered, high = CapacityFactor(), CapacityFactor(0.8), CapacityFactor()
    for i in range(200):
        low = look(low, 15.0 * i, missed=0.9)
        recovered = look(recovered, 15.0 * i)
        high = look(high, 15.0 * i, expected=0.02)

    assert (low.value, recovered.value, high.value) == (0.35, 1.0, 4.0)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        pytest.param({"expected": 0.03, "missed": 0.01}, 1.01, id="far fewer than expected"),
        pytest.param({"expected": 0.03, "missed": 0.02}, 1.0, id="about as many as expected"),
        pytest.param({"expected": 0.01, "missed": 0.0}, 1.0, id="too few expected to miss them"),
        pytest.param({"expected": 0.03, "utilization": 0.6}, 1.0, id="replicas that are not busy"),
        pytest.param(
            {"expected": 0.34, "unrepairable": 0.3, "missed": 0.31},
            1.01,
            id="far fewer than expected of those that a replica can serve in time",
        ),
    ],
)
def test_capacity_rises_above_the_model_only_on_proof(change: dict[str, Any], value: float) -> None:
    assert look(CapacityFactor(), 100.0, **change).value == pytest.approx(value)


def after_minutes(minutes: int, **change: Any) -> float:
    """Return κ after some minutes with one evidence every five seconds."""
    factor = CapacityFactor()
    for i in range(12 * minutes):
        factor = look(factor, 5.0 * i, **change)
    return factor.value


def test_a_model_that_expects_few_misses_is_corrected_after_hours_without_any() -> None:
    # The model expects one miss in two minutes.
    assert after_minutes(3, expected=0.005) == 1
    assert after_minutes(120, expected=0.005) == pytest.approx(1.01**30, rel=0.02)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"missed": 0.004}, id="about as many misses as expected"),
        pytest.param({"utilization": 0.6}, id="replicas that are not busy"),
        pytest.param({"expected": 0.0}, id="no misses expected"),
        pytest.param({"has_backlog": True}, id="a backlog"),
    ],
)
def test_hours_that_prove_nothing_leave_the_capacity_factor(change: dict[str, Any]) -> None:
    assert after_minutes(120, **{"expected": 0.005, **change}) == 1


def test_the_behavior_jumps_up_and_walks_down() -> None:
    behavior = behavior_for(24, 150)

    assert behavior.scale_up.stabilization_window_seconds == 0
    assert [(p.type, p.value) for p in behavior.scale_up.policies] == [(PolicyType.PODS, 24)]
    assert behavior.scale_down.stabilization_window_seconds == 150
    assert [(p.type, p.value) for p in behavior.scale_down.policies] == [(PolicyType.PERCENT, 50)]


def test_a_standby_with_the_calibration_computes_the_demand_of_the_leader() -> None:
    leader = Service(
        [Server("a"), Server("b")], state=ScalingState(StepModelFit(TRUTH.scaled(1.33)))
    )
    leader.run(600, rate=20)
    learned = calibration_of(leader.state)
    assert learned is not None
    fresh = ScalingState(StepModelFit(TRUTH.scaled(2)))

    standby = Service(
        [replace(server) for server in leader.servers],
        leader.now,
        with_calibration(fresh, learned),
    )

    theirs = standby.run(120, rate=20).demand_percent
    assert theirs == pytest.approx(leader.run(120, rate=20).demand_percent, rel=0.02)


def test_a_new_metrics_server_keeps_the_replicas_for_a_scale_down_window() -> None:
    before = service(3)
    calm = before.run(600, rate=14).demand_percent
    learned = calibration_of(before.state)
    assert learned is not None
    state = resumed(ScalingState(StepModelFit(TRUTH)), learned)
    running = Service([replace(server) for server in before.servers], before.now, state)

    assert running.run(120, rate=14).demand_percent == 3 * 85
    assert running.run(180, rate=14).demand_percent == pytest.approx(calm, rel=0.05)


@pytest.mark.parametrize(("rate", "is_known"), [(14.0, False), (80.0, True)])
def test_a_new_metrics_server_answers_at_once_if_the_replicas_clearly_do_not_suffice(
    rate: float, is_known: bool
) -> None:
    before = service(2)
    before.run(600, rate=14)
    learned = calibration_of(before.state)
    assert learned is not None
    state = resumed(ScalingState(StepModelFit(TRUTH)), learned)
    running = Service([replace(server) for server in before.servers], before.now, state)

    seen = running.run(15, rate=rate)

    assert (seen.demand_percent is not None) is is_known
    assert seen.demand_percent is None or seen.demand_percent > 4 * 85


def test_a_demand_that_was_unmet_before_a_restart_is_answered_at_once() -> None:
    before = service(2)
    before.run(300, rate=14)
    burst = before.run(15, rate=80).demand_percent
    learned = calibration_of(before.state)
    assert learned is not None
    assert learned.unmet_demand is not None
    assert shortest_period(learned) < 120
    state = resumed(ScalingState(StepModelFit(TRUTH)), learned)
    running = Service([replace(server) for server in before.servers], before.now + 10, state)

    # The first scrape contains no difference of two reports yet.
    seen = running.run(5, rate=80)

    assert (seen.demand_percent, seen.missing) == (burst, None)


def test_an_unmet_demand_is_forgotten_when_it_is_met_or_old() -> None:
    before = service(2)
    before.run(300, rate=14)
    before.run(15, rate=80)
    learned = calibration_of(before.state)
    assert learned is not None

    def answer(replicas: int, later: float) -> float | None:
        state = resumed(ScalingState(StepModelFit(TRUTH)), learned)
        servers = [Server(f"pod-{i}") for i in range(replicas)]
        return Service(servers, before.now + later, state).run(5, rate=14).demand_percent

    assert answer(2, 10) is not None
    assert answer(2, 200) is None
    assert answer(30, 10) is None


def test_a_demand_that_the_replicas_meet_is_not_stored() -> None:
    running = service(2)
    running.run(300, rate=14)
    learned = calibration_of(running.state)

    assert learned is not None
    assert learned.unmet_demand is None
    assert shortest_period(learned) == 600


def test_a_calibration_holds_the_tokens_per_step_of_speculation() -> None:
    speculating = service()
    speculating.tokens_per_step = 1.8
    speculating.run(120, rate=14)
    learned = calibration_of(speculating.state)
    assert learned is not None

    standby = with_calibration(ScalingState(StepModelFit(TRUTH)), learned)

    assert standby.traffic.mix is not None
    assert standby.traffic.mix.tokens_per_step == pytest.approx(1.8)


def test_nothing_learned_is_no_calibration() -> None:
    assert calibration_of(service().state) is None


def test_a_calibration_has_moved_when_a_number_that_decides_did() -> None:
    running = service()
    running.run(300, rate=14)
    learned = calibration_of(running.state)
    assert learned is not None

    def with_change(**change: Any) -> Calibration:
        assert learned is not None
        return learned.model_copy(update=change)

    assert not has_moved(with_change(capacity_factor=0.96), learned)
    assert has_moved(with_change(capacity_factor=0.94), learned)
    assert has_moved(with_change(cold_start_seconds=(60.0,)), learned)
    usual, first = (with_change(node_wait_seconds=(it, 0.0, 0.0)) for it in (0.0, 300.0))
    assert has_moved(first, usual)
    assert has_moved(with_change(unmet_demand=UnmetDemand(percent=400, at=1000)), learned)

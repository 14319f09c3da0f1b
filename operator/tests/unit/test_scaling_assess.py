"""Tests the demand that follows from scrapes: when it is known or unknown, and its invariants."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice_operator.scaling import capacity
from llmservice_operator.scaling.assess import Missing, price_of
from llmservice_operator.scaling.conditions import RequestMix, ServiceLevelObjective
from llmservice_operator.scaling.lengths import Lengths
from operator_support.scaling import TICK, TRUTH, Server, Service, demand_of, load, service


def test_demand_is_the_load_over_what_one_replica_sustains() -> None:
    seen = service(2).run(300, rate=14)

    assert seen.capacity is not None
    assert demand_of(seen.demand_percent) == pytest.approx(100 * 14 / seen.capacity, rel=0.02)


def test_a_constant_load_takes_no_further_computation_of_the_capacity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = service(2)
    before = running.run(300, rate=14)
    monkeypatch.setattr(capacity, "sustainable_rate", None)

    assert running.run(300, rate=14).capacity == pytest.approx(before.capacity, rel=0.02)


def test_half_the_replicas_show_half_the_demand_each() -> None:
    seen = service(2).run(300, rate=14)

    assert set(seen.utilization_percent) == {"pod-0", "pod-1"}
    total = sum(seen.utilization_percent.values())
    assert total == pytest.approx(demand_of(seen.demand_percent), rel=0.05)


def test_two_engines_in_each_replica_halve_the_demand() -> None:
    plain, parallel = service(2), service(2)
    for server in parallel.servers:
        server.engines = 2

    one = demand_of(plain.run(300, rate=14).demand_percent)
    assert demand_of(parallel.run(300, rate=14).demand_percent) == pytest.approx(one / 2, rel=0.02)


def test_each_stage_of_a_pipeline_computes_a_batch_of_its_own() -> None:
    plain, staged = service(2), service(2)
    for server in staged.servers:
        server.pipeline_stages = 2

    one, two = (each.run(300, rate=14) for each in (plain, staged))

    assert one.capacity is not None
    assert two.capacity == pytest.approx(2 * one.capacity, rel=0.05)


def test_drafts_that_are_accepted_make_a_replica_sustain_more() -> None:
    plain, speculating = service(), service()
    speculating.tokens_per_step = 2
    before, after = plain.run(120, rate=14), speculating.run(120, rate=14)

    assert plain.state.traffic.mix is not None
    assert plain.state.traffic.mix.tokens_per_step == 1
    assert before.capacity is not None
    assert after.capacity is not None
    assert after.capacity > 1.1 * before.capacity
    demand = 100 * 14 / after.capacity
    assert after.demand_percent == pytest.approx(demand, rel=0.02)


def test_the_spread_of_a_price_is_that_of_the_work_of_the_requests() -> None:
    prompts, answers = Lengths(((100, 0.5), (900, 0.5))), Lengths(((10, 0.25), (400, 0.75)))
    mix = RequestMix(prompts, answers, 1000)
    work = [
        (prompt * TRUTH.prefill + answer * mix.token_work(TRUTH), share * other_share)
        for prompt, share in prompts.points
        for answer, other_share in answers.points
    ]

    price = price_of(mix, TRUTH, computed_share=1.0, capacity=10.0)

    mean = sum(seconds * share for seconds, share in work)
    square = sum(seconds**2 * share for seconds, share in work)
    assert price.spread == pytest.approx(math.sqrt(square) / mean)


def test_the_demand_is_unknown_in_the_first_minute() -> None:
    seen = service().run(60, rate=14)

    assert (seen.demand_percent, seen.missing) == (None, Missing.STARTING)


def test_no_ready_replica_is_unknown() -> None:
    one = service(1)
    one.run(120, rate=5)
    one.servers[0].is_ready = False

    one.now += TICK
    one.servers.append(Server("pod-1", is_ready=False))
    seen = Service([], one.now, one.state).run(TICK, rate=0)

    assert (seen.demand_percent, seen.missing) == (None, Missing.NO_READY_REPLICA)


def test_a_service_without_any_request_yet_is_unknown() -> None:
    seen = service().run(120, rate=0)

    assert (seen.demand_percent, seen.missing) == (None, Missing.NO_TRAFFIC_YET)


def test_a_service_that_fell_silent_has_no_demand() -> None:
    running = service()
    running.run(300, rate=14)

    assert running.run(600, rate=0).demand_percent == 0


def test_one_missed_scrape_changes_nothing() -> None:
    running = service(4)
    before = demand_of(running.run(300, rate=28).demand_percent)

    seen = running.run(TICK, rate=28, silent=frozenset({"pod-0"}))

    assert seen.missing_replicas == 0
    assert demand_of(seen.demand_percent) == pytest.approx(before, rel=0.06)


def test_a_silent_replica_counts_as_busy_enough_to_stay() -> None:
    running = service(4)
    before = demand_of(running.run(300, rate=40).demand_percent)

    seen = running.run(120, rate=40, silent=frozenset({"pod-0"}))

    assert seen.missing_replicas == 1
    assert before <= demand_of(seen.demand_percent) <= 4 * 85


def test_most_replicas_silent_is_unknown() -> None:
    running = service(4)
    running.run(300, rate=28)

    seen = running.run(60, rate=28, silent=frozenset({"pod-0", "pod-1", "pod-2"}))

    assert (seen.demand_percent, seen.missing) == (None, Missing.REPLICAS_MISSING)


def test_the_end_of_an_outage_is_not_a_burst() -> None:
    running = service(4)
    before = demand_of(running.run(300, rate=28).demand_percent)
    running.run(300, rate=28, silent=frozenset(f"pod-{i}" for i in range(4)))

    after = running.run(30, rate=28).parts

    assert after is not None
    assert after.percent <= 1.25 * before


def test_after_a_gap_the_replicas_stay_for_a_whole_scale_down_window() -> None:
    running = service(3)
    before = running.run(300, rate=14)
    running.run(120, rate=14, silent=frozenset(f"pod-{i}" for i in range(3)))

    window = before.scale_down_window_seconds
    held = [demand_of(running.run(TICK, rate=14).demand_percent) for _ in range(int(window / TICK))]

    assert demand_of(before.demand_percent) < 2 * 85
    assert held == [3 * 85] * len(held)
    after = demand_of(running.run(TICK, rate=14).demand_percent)
    assert after == pytest.approx(demand_of(before.demand_percent), rel=0.05)


def test_one_missed_answer_of_all_replicas_is_no_gap() -> None:
    running = service(3)
    before = demand_of(running.run(300, rate=14).demand_percent)
    running.run(20, rate=14, silent=frozenset(f"pod-{i}" for i in range(3)))

    seen = demand_of(running.run(30, rate=14).demand_percent)

    assert seen == pytest.approx(before, rel=0.15)


def test_prompts_are_priced_by_the_present_cache_when_it_has_become_useless() -> None:
    running = service(2)
    running.cached_share = 0.9
    hot = running.run(600, rate=14)
    running.cached_share = 0.0
    cold = running.run(30, rate=14)

    assert cold.capacity is not None
    assert hot.parts is not None
    assert cold.parts is not None
    # Prompts are two thirds of the work, and hardly any of it was left.
    assert cold.parts.load > 2 * hot.parts.load


def test_a_counter_reset_is_harmless() -> None:
    running = service(3)
    before = demand_of(running.run(300, rate=20).demand_percent)

    running.servers[0].restart(running.now)
    seen = [demand_of(running.run(TICK, rate=20).demand_percent) for _ in range(20)]

    assert seen == pytest.approx([before] * 20, rel=0.05)


def test_a_counter_that_went_backwards_counts_as_a_restart() -> None:
    after, before = load(1, 5), load(1, 50)

    assert after.since(before) == after


def test_a_running_replica_that_is_seen_for_the_first_time_adds_no_earlier_load() -> None:
    running = service(2)
    before = demand_of(running.run(300, rate=14).demand_percent)
    veteran = Server("pod-9", started=-1e6)
    veteran.serve(load(10, 1e6))
    running.servers.append(veteran)

    seen = demand_of(running.run(TICK, rate=14).demand_percent)

    assert seen <= before * 1.05


def test_a_burst_is_seen_whole_within_two_scrapes() -> None:
    running = service(2)
    before = demand_of(running.run(300, rate=14).demand_percent)

    seen = demand_of(running.run(10, rate=56, served=18).demand_percent)

    assert seen > 3.9 * before


def test_one_scrape_with_many_requests_is_no_burst() -> None:
    running = service(2)
    before = demand_of(running.run(300, rate=14).demand_percent)

    seen = demand_of(running.run(TICK, rate=42).demand_percent)

    assert seen < 1.25 * before


def test_a_few_requests_after_silence_are_no_burst() -> None:
    running = service(2)
    running.run(300, rate=14)
    running.run(120, rate=0)

    seen = running.run(TICK, rate=0.8)

    assert seen.capacity is not None
    assert demand_of(seen.demand_percent) == pytest.approx(100 * 4 / 60 / seen.capacity, rel=0.1)


def test_the_backlog_of_a_cold_start_raises_the_demand_at_once() -> None:
    running = service(2)
    running.run(300, rate=14)

    parts = running.run(30, rate=56, served=18).parts

    assert parts is not None
    assert parts.backlog == pytest.approx(parts.load - 2, rel=0.01)


def test_a_queue_raises_demand() -> None:
    running = service(2)
    calm = demand_of(running.run(300, rate=14).demand_percent)
    queued = running.copy()
    queued.servers[0].waiting = 900

    by_queue = demand_of(queued.run(TICK, rate=14).demand_percent)

    assert by_queue > calm + 30


def test_a_queue_in_one_replica_counts_only_as_far_as_new_replicas_take_its_arrivals() -> None:
    running = service(7)
    calm = running.run(300, rate=70)
    running.servers[0].waiting = 3000

    stuck = running.run(TICK, rate=70)

    assert calm.parts is not None
    assert stuck.parts is not None
    assert stuck.parts.backlog == pytest.approx(calm.parts.load / 7, rel=0.05)


def test_a_queue_in_a_replica_that_gets_no_requests_buys_nothing() -> None:
    running = service(2)
    calm = demand_of(running.run(300, rate=14).demand_percent)
    running.servers.append(Server("hung", waiting=1000, takes_requests=False))

    assert demand_of(running.run(300, rate=14).demand_percent) == pytest.approx(calm, rel=0.05)


def test_a_steady_rise_is_extended_over_a_cold_start() -> None:
    running = service(4)
    running.run(300, rate=10)
    for minute in range(60):
        running.run(TICK, rate=10 + 0.25 * minute)

    parts = running.last.parts if running.last else None

    assert parts is not None
    assert parts.trend > 0.05 * parts.load


def test_a_step_is_no_trend() -> None:
    running = service(4)
    running.run(300, rate=10)
    seen = running.run(120, rate=30)

    assert seen.parts is not None
    assert seen.parts.trend == 0


def test_silence_between_bursts_lengthens_the_scale_down_window() -> None:
    running = service(4)
    for _ in range(6):
        running.run(60, rate=30)
        seen = running.run(60, rate=0)

    assert seen.is_bursty
    assert seen.scale_down_window_seconds == 600


def test_a_cold_start_is_learned_from_a_pod_that_became_ready() -> None:
    running = service(2)
    running.run(120, rate=14)
    created = running.now
    late = Server("pod-2", created=created, is_ready=False, started=created)
    running.servers.append(late)
    running.run(90, rate=14)
    assert running.state.cold_starts.estimate == 120

    late.become_ready(running.now + TICK)
    running.run(TICK, rate=14)

    assert running.state.cold_starts.seconds == (95.0,)


def test_a_cold_start_begins_when_the_replica_gets_a_node() -> None:
    running = service(2)
    running.run(120, rate=14)
    late = Server("pod-2", created=running.now, is_ready=False, started=running.now)
    late.scheduled_at = running.now + 30
    running.servers.append(late)
    running.run(90, rate=14)

    late.become_ready(running.now + TICK)
    seen = running.run(TICK, rate=14)

    assert running.state.cold_starts.seconds == (65.0,)
    assert (seen.cold_start_seconds, seen.node_wait_seconds) == (65, 30)
    assert seen.longest_start_seconds == 95


def test_misses_that_load_does_not_explain_lower_the_capacity() -> None:
    running = service(2)
    before = running.run(300, rate=10)

    after = running.run(300, rate=10, met=0.8)

    assert (before.capacity_factor, before.attainment) == (1, 1)
    assert after.attainment == pytest.approx(0.8)
    assert 0.35 <= after.capacity_factor < 0.75
    assert before.capacity is not None
    assert after.capacity == pytest.approx(after.capacity_factor * before.capacity, rel=0.01)


def test_a_few_requests_that_wait_behind_a_long_prompt_do_not_excuse_misses() -> None:
    running = service(2)
    running.run(300, rate=10)
    running.servers[0].waiting = 20
    after = running.run(300, rate=10, met=0.8)

    assert after.parts is not None
    assert after.parts.backlog > 0
    assert after.capacity_factor < 0.75


def test_without_an_slo_misses_mean_nothing() -> None:
    running = service(2)
    running.slo = ServiceLevelObjective(None, None)

    assert running.run(600, rate=10, met=0.0).capacity_factor == 1


def test_misses_of_an_overload_do_not_lower_the_capacity() -> None:
    running = service(2)
    running.run(300, rate=14)
    running.run(120, rate=60, met=0.2, served=18)

    assert running.run(60, rate=14, met=0.5).capacity_factor == 1


@settings(max_examples=15)
@given(
    rate=st.floats(0.5, 40),
    more=st.floats(1, 5),
    replicas=st.integers(1, 5),
    waiting=st.integers(0, 500),
    extra=st.integers(0, 500),
)
def test_more_load_never_means_less_demand(
    rate: float, more: float, replicas: int, waiting: int, extra: int
) -> None:
    less = service(replicas)
    less.run(120, rate=rate)
    greater = less.copy()
    less.servers[0].waiting, greater.servers[0].waiting = waiting, waiting + extra

    calm = demand_of(less.run(TICK, rate=rate).demand_percent)
    busy = demand_of(greater.run(TICK, rate=rate * more).demand_percent)

    assert busy >= calm * (1 - 1e-3)


@settings(max_examples=15)
@given(rate=st.floats(0.5, 60), replicas=st.integers(1, 4), pending=st.integers(1, 20))
def test_pending_pods_change_nothing(rate: float, replicas: int, pending: int) -> None:
    running = service(replicas)
    running.run(120, rate=rate)
    crowded = running.copy()
    crowded.servers += [Server(f"new-{i}", is_ready=False) for i in range(pending)]

    alone = running.run(30, rate=rate)

    assert crowded.run(30, rate=rate).demand_percent == alone.demand_percent


@settings(max_examples=15)
@given(
    replicas=st.integers(1, 6),
    data=st.data(),
)
def test_unknown_is_never_zero(replicas: int, data: st.DataObject) -> None:
    running = service(replicas)
    before = demand_of(running.run(120, rate=5.0 * replicas).demand_percent)
    silent = frozenset(
        data.draw(st.sets(st.sampled_from([s.name for s in running.servers]), min_size=1))
    )

    seen = running.run(180, rate=5.0 * replicas, silent=silent)

    assert seen.demand_percent is None or seen.demand_percent >= 0.95 * before


@settings(max_examples=10)
@given(at=st.integers(1, 20), rate=st.floats(2, 30))
def test_a_restart_at_any_time_is_harmless(at: int, rate: float) -> None:
    running = service(2)
    before = demand_of(running.run(200, rate=rate).demand_percent)
    running.run(at * TICK, rate=rate)
    running.servers[0].restart(running.now)

    after = demand_of(running.run(30, rate=rate).demand_percent)

    assert math.isclose(after, before, rel_tol=0.05)

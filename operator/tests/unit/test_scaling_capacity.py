"""Tests the capacity: the highest request rate at which the tail of the latencies meets the SLO."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice_operator.api.calibration import LENGTH_BUCKETS
from llmservice_operator.scaling.capacity import (
    LEAST_SHARE,
    REACH,
    REACH_OF_ITL,
    UNREACHABLE,
    Capacity,
    LeastLimits,
    idle_itl,
    idle_ttft,
    least_limits,
    sustainable_rate,
)
from llmservice_operator.scaling.conditions import EngineLimits, RequestMix, ServiceLevelObjective
from llmservice_operator.scaling.lengths import Lengths, lengths_of
from llmservice_operator.scaling.misses import misses
from llmservice_operator.scaling.step_model import StepModel
from operator_support.scaling import TRUTH, bucket_of

LIMITS = EngineLimits(256, 420_000, 8192)
NO_SLO = ServiceLevelObjective(None, None)
ITL_ONLY = ServiceLevelObjective(None, 0.05)


def mix(prompt: float, answer: float, held: float | None = None) -> RequestMix:
    return RequestMix(
        Lengths(((prompt, 1.0),)), Lengths(((answer, 1.0),)), held or prompt + answer / 2
    )


def mean_formula(requests: RequestMix) -> float:
    """Return the requests per second at which the mean inter-token latency is 50 ms."""
    work = requests.prompt_work(TRUTH) + (requests.answers.mean - 1) * requests.token_work(TRUTH)
    return (1 - TRUTH.fixed / 0.05) / work


def test_with_long_answers_the_tail_is_the_mean() -> None:
    long = mix(10, 20_000, 2000)

    rate = sustainable_rate(
        long, TRUTH, replace(LIMITS, max_sequences=10**6, kv_capacity_tokens=1e12), ITL_ONLY
    )

    assert rate == pytest.approx(mean_formula(long), rel=0.15)


def test_with_short_answers_the_tail_is_far_below_the_mean() -> None:
    short = mix(2000, 12)

    assert sustainable_rate(short, TRUTH, LIMITS, ITL_ONLY) < 0.7 * mean_formula(short)


def test_the_shorter_the_answers_the_less_of_the_mean_is_left() -> None:
    left = [
        sustainable_rate(mix(2000, answer), TRUTH, LIMITS, ITL_ONLY)
        / mean_formula(mix(2000, answer))
        for answer in (6, 12, 50, 200)
    ]

    assert left == sorted(left)


def test_steps_that_always_fit_the_latency_cannot_break_it() -> None:
    small_steps = replace(LIMITS, max_step_tokens=512)

    assert misses(8.0, mix(2000, 12), TRUTH, small_steps, ITL_ONLY).share == pytest.approx(
        0, abs=1e-6
    )


def test_without_an_slo_the_slots_are_the_limit() -> None:
    few = replace(LIMITS, max_sequences=8)

    assert sustainable_rate(mix(100, 200), TRUTH, few, NO_SLO) < 0.5 * sustainable_rate(
        mix(100, 200), TRUTH, LIMITS, NO_SLO
    )


def test_kv_tokens_limit_what_long_contexts_can_run() -> None:
    half = replace(LIMITS, kv_capacity_tokens=LIMITS.kv_capacity_tokens / 8)
    long = mix(300, 1500, 3000)

    assert sustainable_rate(long, TRUTH, half, ITL_ONLY) < 0.6 * sustainable_rate(
        long, TRUTH, LIMITS, ITL_ONLY
    )


def test_engines_that_share_the_requests_of_a_replica_sustain_their_sum() -> None:
    mean, several = mix(1000, 200), replace(LIMITS, engines=4)
    one = sustainable_rate(mean, TRUTH, LIMITS, ITL_ONLY)

    assert sustainable_rate(mean, TRUTH, several, ITL_ONLY) == pytest.approx(4 * one)
    assert misses(4 * one, mean, TRUTH, several, ITL_ONLY).share == pytest.approx(
        misses(one, mean, TRUTH, LIMITS, ITL_ONLY).share
    )


def test_two_tokens_a_step_are_half_the_steps_and_twice_the_time_for_each() -> None:
    speculating = replace(mix(400, 201), tokens_per_step=2)
    half = replace(mix(400, 101), kv_tokens_per_sequence=speculating.kv_tokens_per_sequence)
    patient = ServiceLevelObjective(None, 0.1)

    rate = sustainable_rate(speculating, TRUTH, LIMITS, ITL_ONLY)

    assert rate == pytest.approx(sustainable_rate(half, TRUTH, LIMITS, patient), rel=1e-4)
    assert rate > 1.3 * sustainable_rate(mix(400, 201), TRUTH, LIMITS, ITL_ONLY)
    missed = misses(rate, speculating, TRUTH, LIMITS, ITL_ONLY).share
    assert missed == pytest.approx(0.05, abs=0.002)


def test_prompts_that_no_replica_answers_in_time_do_not_shrink_capacity_to_nothing() -> None:
    prompts = Lengths(((200.0, 0.7), (40_000.0, 0.3)))
    requests = RequestMix(prompts, Lengths(((100.0, 1.0),)), 1000.0)
    slo = ServiceLevelObjective()

    assert misses(0.0, requests, TRUTH, LIMITS, slo).share == pytest.approx(0.3)
    assert sustainable_rate(requests, TRUTH, LIMITS, slo) > 0.1


@pytest.mark.parametrize("milliseconds", [5.0, 7.9, 8.0, 8.2, 9.0])
def test_an_itl_limit_near_the_latency_of_an_idle_engine_costs_a_bounded_price(
    milliseconds: float,
) -> None:
    requests, engine = mix(300, 150), TRUTH
    assert idle_itl(requests, engine) == pytest.approx(0.0065, abs=0.0005)
    near = ServiceLevelObjective(None, milliseconds / 1000 * idle_itl(requests, engine) / 0.008)

    rate = sustainable_rate(requests, engine, LIMITS, near)

    assert rate >= LEAST_SHARE * sustainable_rate(requests, engine, LIMITS, NO_SLO)


def test_the_least_limits_are_those_that_an_idle_engine_attains_for_the_objective() -> None:
    prompts = Lengths(((40_000.0, 0.03), (30_000.0, 0.07), (200.0, 0.9)))
    requests = RequestMix(prompts, Lengths(((100.0, 1.0),)), 1000.0)
    tight, easy = ServiceLevelObjective(0.5, 0.005), ServiceLevelObjective(3.0, 0.05)

    found = least_limits(requests, TRUTH, LIMITS, tight)

    assert found.itl_seconds == pytest.approx(idle_itl(requests, TRUTH))
    assert found.ttft_seconds == pytest.approx(idle_ttft(30_000.0, TRUTH, LIMITS))
    at_best = ServiceLevelObjective(found.ttft_seconds, found.itl_seconds)
    assert misses(0.0, requests, TRUTH, LIMITS, at_best).ttft <= 0.05
    assert least_limits(requests, TRUTH, LIMITS, easy) == LeastLimits()


def test_a_limit_that_no_engine_attains_is_left_out() -> None:
    requests = mix(300, 150)
    idle = idle_itl(requests, TRUTH)

    none, far = (
        sustainable_rate(requests, TRUTH, LIMITS, ServiceLevelObjective(None, limit * idle))
        for limit in (0.5, UNREACHABLE)
    )

    assert none == pytest.approx(far)


def test_requests_that_cost_nothing_by_the_step_model_have_a_finite_capacity() -> None:
    cached = RequestMix(Lengths(((0.0, 1.0),)), Lengths(((1.0, 1.0),)), 1000.0)
    free = StepModel(fixed=0.006, prefill=35e-6, sequence=0.0, kv=0.0)

    rate = sustainable_rate(cached, free, LIMITS, ServiceLevelObjective())

    assert math.isfinite(rate)
    assert rate > 100


def test_prompts_that_queue_miss_the_ttft() -> None:
    ttft_only = ServiceLevelObjective(0.5, None)

    # A prompt takes 0.07 s, so 12 prompts per second use 86 % of the time.
    queued = misses(12, mix(2000, 1), TRUTH, LIMITS, ttft_only).ttft
    assert queued == pytest.approx(0.3, abs=0.1)
    assert misses(6, mix(2000, 1), TRUTH, LIMITS, ttft_only).ttft < 0.02 * queued


def test_short_prompts_do_not_wait_for_full_steps() -> None:
    # A full step of this engine takes longer than the limit, but it would compute 100 prompts.
    assert TRUTH.fixed + LIMITS.max_step_tokens * TRUTH.prefill > 0.07
    short, ttft_only = mix(20, 30), ServiceLevelObjective(0.035, None)

    assert misses(200, short, TRUTH, LIMITS, ttft_only).ttft < 0.01
    assert misses(200, short, TRUTH, LIMITS, replace(ttft_only, ttft_seconds=0.01)).ttft > 0.9


@pytest.mark.parametrize("unit", [0.01, 1000.0])
def test_misses_do_not_depend_on_the_unit_of_time(unit: float) -> None:
    requests = RequestMix(
        Lengths(((500.0, 0.5), (1500.0, 0.5))), Lengths(((50.0, 0.5), (350.0, 0.5))), 1100
    )
    slo = ServiceLevelObjective(0.5 * unit, 0.05 * unit)

    found = misses(16 / unit, requests, TRUTH.scaled(unit), LIMITS, slo)

    assert found == pytest.approx(misses(16, requests, TRUTH, LIMITS, ServiceLevelObjective()))
    assert min(found.itl, found.ttft) > 0.0005


@pytest.mark.parametrize("more", [-1e-6, 1e-6])
def test_misses_do_not_jump_where_two_lengths_of_answers_become_equal(more: float) -> None:
    equal, different = (
        RequestMix(Lengths(((1000.0, 1.0),)), Lengths(((200.0, 0.5), (other, 0.5))), 1100)
        for other in (200.0, 200.0 + more)
    )

    found = misses(16, different, TRUTH, LIMITS, ITL_ONLY).itl

    assert found == pytest.approx(misses(16, equal, TRUTH, LIMITS, ITL_ONLY).itl, rel=1e-5)
    assert found > 0.01


@settings(max_examples=60)
@given(
    prompt=st.floats(1, 20_000),
    answer=st.floats(1, 8000),
    held=st.floats(1, 20_000),
    share=st.floats(0, 0.95),
)
def test_misses_grow_with_the_rate(prompt: float, answer: float, held: float, share: float) -> None:
    requests = mix(prompt, answer, held)
    ceiling = 1 / requests.work(TRUTH)
    slo = ServiceLevelObjective()

    less = misses(share * ceiling, requests, TRUTH, LIMITS, slo).share
    more = misses((share + 0.05) * ceiling, requests, TRUTH, LIMITS, slo).share

    # The Wilson-Hilferty approximation of a tail may decrease by some millionths.
    assert 0 <= less <= more + 1e-5
    assert more <= 1


@settings(max_examples=40)
@given(
    prompt=st.floats(1, 20_000),
    answer=st.floats(1, 8000),
    slower=st.floats(1, 3),
    objective=st.floats(0.5, 0.99),
)
def test_a_slower_engine_never_sustains_more(
    prompt: float, answer: float, slower: float, objective: float
) -> None:
    slo = ServiceLevelObjective(objective=objective)
    fast = sustainable_rate(mix(prompt, answer), TRUTH, LIMITS, slo)
    slow = sustainable_rate(mix(prompt, answer), TRUTH.scaled(slower), LIMITS, slo)

    assert math.isfinite(fast)
    # A limit that an idle engine hardly attains is left out, and the rate then rises again.
    model = TRUTH.scaled(slower)
    is_easy = (slo.itl_seconds or 0) > REACH_OF_ITL * idle_itl(mix(prompt, answer), model)
    if is_easy and (slo.ttft_seconds or 0) > REACH * idle_ttft(prompt, model, LIMITS):
        assert 0 < slow <= fast * (1 + 1e-6)


def test_a_histogram_keeps_the_true_mean() -> None:
    counts = [0.0] * LENGTH_BUCKETS
    for tokens in (3, 70, 70, 900, 5000):
        counts[bucket_of(tokens)] += 1

    found = lengths_of(tuple(counts), 3 + 70 + 70 + 900 + 5000)

    assert found is not None
    assert found.mean == pytest.approx((3 + 70 + 70 + 900 + 5000) / 5)
    assert sum(share for _, share in found.points) == pytest.approx(1)


def test_long_prompts_of_one_bucket_attain_a_limit_in_part() -> None:
    counts = [0.0] * LENGTH_BUCKETS
    counts[bucket_of(10_000)] += 100
    found = lengths_of(tuple(counts), 1_200_000)
    assert found is not None
    parts = found.split()

    assert parts.mean == pytest.approx(12_000)
    assert [round(tokens) for tokens, _ in parts.points] == [9_000, 11_000, 13_000, 15_000]
    requests = RequestMix(parts, Lengths(((100.0, 1.0),)), 1000.0)
    limit = ServiceLevelObjective(idle_ttft(12_000.0, TRUTH, LIMITS), None)
    assert misses(0.0, requests, TRUTH, LIMITS, limit).share == pytest.approx(0.5)
    assert Lengths(((900.0, 1.0),)).split() == Lengths(((900.0, 1.0),))


@pytest.mark.parametrize("tokens", [0, 5])
def test_an_empty_histogram_is_no_distribution(tokens: float) -> None:
    assert lengths_of((0.0,) * LENGTH_BUCKETS, tokens) is None


USUAL = mix(1000, 200)
KNOWN = Capacity.of(USUAL, TRUTH, LIMITS, ITL_ONLY)


@pytest.mark.parametrize("factor", [0.993, 1.0, 1.007])
def test_a_capacity_is_not_computed_again_while_its_conditions_hardly_move(factor: float) -> None:
    moved, slower = mix(1000 * factor, 200 * factor, 1100 * factor), TRUTH.scaled(factor)

    found = Capacity.of(moved, slower, LIMITS, ITL_ONLY, KNOWN)

    assert found is KNOWN
    exact = sustainable_rate(moved, slower, LIMITS, ITL_ONLY)
    assert found.rate_of(moved, slower) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(
    "conditions",
    [
        (mix(1020, 200), TRUTH, LIMITS, ITL_ONLY),
        (mix(1000, 204), TRUTH, LIMITS, ITL_ONLY),
        (mix(1000, 200, 1120), TRUTH, LIMITS, ITL_ONLY),
        (replace(USUAL, tokens_per_step=1.02), TRUTH, LIMITS, ITL_ONLY),
        (USUAL, TRUTH.scaled(1.02), LIMITS, ITL_ONLY),
        (USUAL, TRUTH, replace(LIMITS, max_sequences=255), ITL_ONLY),
        (USUAL, TRUTH, LIMITS, replace(ITL_ONLY, itl_seconds=0.051)),
        (
            replace(USUAL, prompts=Lengths(((1000, 0.995), (2000, 0.005)))),
            TRUTH,
            LIMITS,
            ITL_ONLY,
        ),
    ],
)
def test_a_capacity_is_computed_again_when_one_of_its_conditions_has_moved(
    conditions: tuple[RequestMix, StepModel, EngineLimits, ServiceLevelObjective],
) -> None:
    found = Capacity.of(*conditions, KNOWN)

    assert found == Capacity.of(*conditions)
    assert found != KNOWN


def test_a_share_of_long_prompts_that_has_moved_changes_the_capacity() -> None:
    few = replace(USUAL, prompts=Lengths(((1000, 0.96), (8000, 0.04))))
    some = replace(USUAL, prompts=Lengths(((1000, 0.955), (8000, 0.045))))
    slo = ServiceLevelObjective(0.4, None)
    known = Capacity.of(few, TRUTH, LIMITS, slo)

    assert Capacity.of(few, TRUTH, LIMITS, slo, known) is known
    assert Capacity.of(some, TRUTH, LIMITS, slo, known) is not known


def test_a_capacity_tells_the_misses_at_a_share_of_its_rate() -> None:
    assert KNOWN.missed(0.0) == KNOWN.unrepairable
    assert KNOWN.missed(1.0) == pytest.approx(1 - ITL_ONLY.objective, abs=1e-3)
    assert KNOWN.missed(1.0) == misses(KNOWN.rate, USUAL, TRUTH, LIMITS, ITL_ONLY).share

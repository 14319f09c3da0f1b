"""Tests the mean request: outliers, and answers that have not finished yet."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from llmservice_operator.api.calibration import LENGTH_BUCKETS
from llmservice_operator.scaling.assess import price_of
from llmservice_operator.scaling.capacity import sustainable_rate
from llmservice_operator.scaling.conditions import (
    EngineLimits,
    RequestMix,
    ServiceLevelObjective,
)
from llmservice_operator.scaling.lengths import RARE, Lengths
from llmservice_operator.scaling.signals import Counters
from llmservice_operator.scaling.traffic import FEWEST_REQUESTS, TrafficMemory
from operator_support.scaling import TRUTH, bucket_of, step_sums

LIMITS = EngineLimits(256, 420_000, 1024)
SLO = ServiceLevelObjective()
CHAT = [(100, 40), (400, 200), (900, 120), (1800, 39)]
"""Lengths of prompts in tokens, with their numbers."""


def counters(prompts: list[tuple[int, int]], answer: int = 200) -> Counters:
    """Return the counters of requests that have all finished."""
    number, histogram = sum(count for _, count in prompts), [0.0] * LENGTH_BUCKETS
    for tokens, count in prompts:
        histogram[bucket_of(tokens)] += count
    answers = tuple(number if i == bucket_of(answer) else 0 for i in range(LENGTH_BUCKETS))
    total = sum(tokens * count for tokens, count in prompts)
    return Counters(
        arrivals=number,
        prompt_tokens_arrived=total,
        prompt_tokens_computed=total,
        generated_tokens=answer * number,
        finished=number,
        prompt_lengths=tuple(histogram),
        answer_lengths=answers,
        answer_tokens=answer * number,
        # A long prompt is in the KV cache for as long as its answer.
        steps=step_sums((0.0, 1.0, tokens + answer / 2) for tokens, count in prompts[:1]).plus(
            step_sums((0.0, count, count * (tokens + answer / 2)) for tokens, count in prompts)
        ),
    )


def mix_of(prompts: list[tuple[int, int]]) -> RequestMix:
    mix = TrafficMemory(counters(prompts)).mix
    assert mix is not None
    return mix


def capacity(mix: RequestMix) -> float:
    return sustainable_rate(mix.usual(), TRUTH, LIMITS, SLO)


def test_one_prompt_of_100000_tokens_in_400_requests_hardly_changes_the_capacity() -> None:
    with_whale = mix_of([*CHAT, (100_000, 1)])

    assert capacity(with_whale) == pytest.approx(capacity(mix_of(CHAT)), rel=0.1)
    assert sustainable_rate(with_whale, TRUTH, LIMITS, SLO) < 0.5 * capacity(mix_of(CHAT))


def test_an_outlier_costs_as_much_more_as_it_has_more_tokens() -> None:
    plain, with_whale = mix_of(CHAT), mix_of([*CHAT, (100_000, 1)])
    prices = [price_of(mix, TRUTH, 1.0, capacity(mix)) for mix in (plain, with_whale)]

    assert prices[1].prompt_token == pytest.approx(prices[0].prompt_token, rel=0.1)
    # The noise of the arrivals includes the outlier, so its arrival is no burst.
    assert prices[1].spread > 3 * prices[0].spread


def test_requests_that_are_no_outliers_all_count() -> None:
    usual = mix_of(CHAT)

    assert usual.usual() is usual


@pytest.mark.parametrize("share", [0.5 * RARE, RARE, 2 * RARE, 0.02])
def test_outliers_are_left_out_gradually(share: float) -> None:
    def mean(of_long: float) -> float:
        lengths = Lengths(((100.0, 1 - of_long), (100_000.0, of_long)))
        return lengths.without_outliers().mean

    assert mean(share * 1.001) == pytest.approx(mean(share), rel=0.01)


def test_at_most_the_rare_share_is_left_out() -> None:
    kept = Lengths(((100.0, 0.97), (100_000.0, 0.03))).without_outliers()

    assert kept.points[1][1] == pytest.approx((0.03 - RARE) / (1 - RARE))


def begun(finished: int, running: int, progress: float) -> Counters:
    """Return the counters after some answers of 300 tokens, while others are in progress."""
    done = counters([(400, finished)], answer=300)
    return replace(
        done,
        arrivals=finished + running,
        prompt_tokens_arrived=400 * (finished + running),
        prompt_tokens_computed=400 * (finished + running),
        generated_tokens=done.generated_tokens + progress * running,
    )


def mean_answer(seen: Counters) -> float:
    mix = TrafficMemory(seen).mix
    assert mix is not None
    return mix.answers.mean


def young(lengths: Callable[[random.Random], float], seconds: float) -> Counters:
    """Return the counters of a service whose first request came `seconds` ago, at 2 requests/s and
    40 tokens/s for each answer.
    """
    rng = random.Random(7)
    answers = [(40 * (seconds - each / 2), lengths(rng)) for each in range(int(2 * seconds))]
    done = [length for possible, length in answers if length <= possible]
    histogram = [0.0] * LENGTH_BUCKETS
    for length in done:
        histogram[bucket_of(int(length))] += 1
    return replace(
        begun(len(done), len(answers) - len(done), 0),
        generated_tokens=sum(min(each) for each in answers),
        answer_lengths=tuple(histogram),
        answer_tokens=sum(done),
    )


@pytest.mark.parametrize(
    "lengths",
    [
        lambda rng: 6000.0,
        lambda rng: rng.uniform(3000, 9000),
        lambda rng: rng.lognormvariate(math.log(6000) - 0.32, 0.8),
        lambda rng: rng.expovariate(1 / 6000),
    ],
    ids=["equal", "uniform", "lognormal", "exponential"],
)
@pytest.mark.parametrize("seconds", [60, 90, 120, 155, 180, 240, 300, 450])
def test_the_first_answers_to_finish_are_not_taken_for_the_mean_answer(
    lengths: Callable[[random.Random], float], seconds: float
) -> None:
    seen = young(lengths, seconds)

    if seen.finished >= FEWEST_REQUESTS:
        assert 0.45 * 6000 < mean_answer(seen) < 1.3 * 6000


def test_answers_of_an_old_service_that_do_not_finish_were_aborted() -> None:
    seen = begun(finished=200, running=800, progress=400)
    mix = TrafficMemory(seen, seconds=1200.0).mix

    assert mix is not None
    assert mix.answers.mean == pytest.approx(0.2 * 300 + 0.8 * 400)
    assert mean_answer(seen) > 2 * mix.answers.mean


def test_answers_that_have_just_begun_do_not_lower_the_mean() -> None:
    assert mean_answer(begun(20, 180, 5)) == pytest.approx(300)


def test_requests_that_wait_are_not_taken_for_answers_in_progress() -> None:
    seen = begun(20, 180, 1500)
    queued = replace(
        seen,
        arrivals=seen.arrivals + 1000,
        prompt_tokens_arrived=seen.prompt_tokens_arrived + 400_000,
    )

    assert mean_answer(queued) == pytest.approx(mean_answer(seen))


@pytest.mark.parametrize("tokens", [50, 2000])
def test_answers_that_clients_abort_count_with_the_tokens_that_were_generated(tokens: int) -> None:
    seen = begun(finished=700, running=300, progress=tokens)

    assert mean_answer(seen) == pytest.approx(max(0.7 * 300 + 0.3 * tokens, 300))

"""Tests that the simulated engines follow the scheduling rules of a real engine."""

import numpy as np
import pytest

from scaling.choices import Routing, new_router
from scaling.dispatch import run_until
from scaling.engine import (
    COMPUTED,
    GENERATED,
    PREEMPTIONS,
    Array,
    Fleet,
    Requests,
    new_fleet,
    new_requests,
    seed_noise,
)
from scaling.hardware import SLO, slo_array

STEP = np.array([0.01, 1e-5, 1e-5, 1e-8, 0.0])
ROOMY = np.array([8, 100_000, 512])


def serve(
    prompts: list[int],
    answers: list[int],
    *,
    arrivals: list[float] | None = None,
    limits: Array = ROOMY,
    cached: list[int] | None = None,
    engines: int = 1,
    until: float = 1000.0,
) -> tuple[Requests, Fleet]:
    count = len(prompts)
    requests = new_requests(
        np.array(arrivals or [0.0] * count),
        np.array(prompts, np.int64),
        np.array(answers, np.int64),
        np.array(cached or [0] * count, np.int64),
    )
    fleet = new_fleet(engines, int(limits[0]))
    fleet.routable[:] = 1
    seed_noise(1)
    router = new_router(Routing.LEAST_REQUESTS, requests.answer)
    active = np.arange(engines)
    run_until(requests, fleet, router, active, 0, until, STEP, limits, slo_array(SLO))
    return requests, fleet


def test_one_request_takes_the_steps_that_the_model_says() -> None:
    requests, _ = serve([1000], [3])

    # Two steps compute 512 and 488 prompt tokens. Then two steps decode one sequence.
    first = 2 * 0.01 + 1000 * 1e-5
    assert requests.first_token[0] == pytest.approx(first)
    decode = 2 * (0.01 + 1e-5) + (1001 + 1002) * 1e-8
    assert requests.finish[0] == pytest.approx(first + decode)


def test_every_request_finishes_with_all_its_tokens_and_frees_what_it_held() -> None:
    rng = np.random.default_rng(3)
    prompts = rng.integers(1, 3000, 300).tolist()
    answers = rng.integers(1, 200, 300).tolist()

    requests, fleet = serve(prompts, answers, engines=3)

    assert np.all(requests.generated == answers)
    assert np.all(requests.finish >= requests.first_token)
    assert fleet.totals[:, COMPUTED].sum() == sum(prompts)
    assert fleet.totals[:, GENERATED].sum() == sum(answers)
    assert fleet.running.sum() == fleet.waiting.sum() == 0
    assert fleet.kv_used.sum() == fleet.kv_read.sum() == 0


def test_a_full_engine_preempts_and_computes_again() -> None:
    tight = np.array([8, 900, 512])

    requests, fleet = serve([200] * 4, [200] * 4, limits=tight)

    assert fleet.totals[0, PREEMPTIONS] > 0
    assert fleet.totals[0, COMPUTED] > 4 * 200
    assert np.all(requests.generated == 200)
    assert fleet.kv_used[0] == fleet.kv_read[0] == 0


def test_no_more_sequences_run_than_there_are_slots() -> None:
    requests, _ = serve([10] * 20, [50] * 20)

    started = np.sort(requests.first_token)
    assert started[8] > started[7]


def test_cached_prompt_tokens_are_not_computed() -> None:
    _, fleet = serve([1000], [2], cached=[900])

    assert fleet.totals[0, COMPUTED] == 100


def test_requests_go_to_the_engine_with_the_fewest() -> None:
    requests, fleet = serve([100] * 30, [100] * 30, engines=3, until=0.001)

    assert len(requests.arrival) == 30
    assert (fleet.running + fleet.waiting).tolist() == [10, 10, 10]


def test_without_a_routable_engine_requests_stay_with_the_caller() -> None:
    requests = new_requests(np.array([0.0]), np.array([10]), np.array([10]), np.array([0]))
    fleet, router = new_fleet(1, 8), new_router(Routing.LEAST_REQUESTS, requests.answer)
    active = np.array([0])

    assert run_until(requests, fleet, router, active, 0, 5, STEP, ROOMY, slo_array(SLO)) == 0

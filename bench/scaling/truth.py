"""Measures the truth about one engine: the rate at which its SLO attainment falls to the
objective.

It uses simulation and bisection, and none of the product's formulas. The oracle's replicas, the
peers' tuned targets and the error of our formula are computed from this rate.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from scaling.choices import Routing, new_router
from scaling.dispatch import run_until
from scaling.engine import BUSY_SECONDS, Fleet, new_fleet, new_requests, seed_noise
from scaling.hardware import slo_array
from scaling.workloads import Traffic, Workload

SHORTEST_WARM_UP_SECONDS = 200.0
WARM_UP_STAYS = 5.0
"""Warm-up as a multiple of the time that a running sequence stays. Before, the engine holds fewer
sequences than the rate gives it in the end."""
WARM_UPS = 7.5
"""Duration of a measurement, as a multiple of its warm-up."""


@dataclass(frozen=True)
class Level:
    """Results of one engine under one constant rate."""

    rate: float
    attainment: float
    running: float
    kv_used: float
    busy: float
    fleet: Fleet


@dataclass(frozen=True)
class Truth:
    """True capacity of one engine under one mix, as measured by simulation."""

    capacity: float
    """Requests per second of this mix at which one engine's attainment, divided by its attainment
    without load, falls to the objective."""
    running_at_target: float
    """Mean number of running and waiting requests at 85 % of the capacity."""
    kv_at_target: float
    """Mean share of the KV tokens in use at 85 % of the capacity."""


def warm_up_seconds(workload: Workload, traffic: Traffic) -> float:
    """Return the time in seconds after which an engine is in its steady state.

    A running sequence is more often a long one than a short one. Its steps take about twice as long
    as on an idle engine.
    """
    tokens = float(np.mean(traffic.answer**2.0) / np.mean(traffic.answer))
    stay = tokens * 2 * workload.hardware.step.fixed
    return max(SHORTEST_WARM_UP_SECONDS, WARM_UP_STAYS * stay)


def measure(
    workload: Workload, traffic: Traffic, rate: float, seconds: float | None = None
) -> Level:
    """Serve requests of this mix at a constant rate on one engine, and judge its steady state.

    Without `seconds`, the measurement takes WARM_UPS times as long as the warm-up.
    """
    warm_up = warm_up_seconds(workload, traffic)
    seconds = seconds or WARM_UPS * warm_up
    rng = np.random.default_rng(7)
    count = max(int(rate * seconds), 1)
    picks = rng.integers(0, len(traffic.arrival), count)
    arrival = np.sort(rng.uniform(0, seconds, count))
    requests = new_requests(
        arrival, traffic.prompt[picks], traffic.answer[picks], traffic.cached[picks]
    )
    hardware = workload.hardware
    fleet = new_fleet(1, hardware.limits.max_sequences)
    fleet.routable[0] = 1
    router = new_router(Routing.LEAST_REQUESTS, traffic.answer)
    seed_noise(7)
    active = np.zeros(1, np.int64)
    running, kv_used, samples, first = 0.0, 0.0, 0, 0
    for until in np.arange(5.0, seconds + 1, 5.0):
        first = run_until(
            requests,
            fleet,
            router,
            active,
            first,
            until,
            hardware.step_array,
            hardware.limits_array,
            slo_array(workload.slo),
        )
        if until > warm_up:
            running += fleet.running[0] + fleet.waiting[0]
            kv_used += fleet.kv_used[0]
            samples += 1
    judged = arrival > warm_up
    started = requests.first_token >= 0
    done = requests.finish >= 0
    ttft = np.where(started, requests.first_token - arrival, np.inf)
    end = np.where(done, requests.finish, seconds)
    steps = np.maximum(np.where(done, requests.answer, requests.generated) - 1, 1)
    itl = np.where(started, (end - requests.first_token) / steps, np.inf)
    ttft_limit, itl_limit = slo_array(workload.slo)
    met = (ttft <= ttft_limit) & (itl <= itl_limit)
    return Level(
        rate,
        float(np.mean(met[judged])),
        running / samples,
        kv_used / samples / hardware.limits.kv_capacity_tokens,
        float(fleet.totals[0, BUSY_SECONDS]) / seconds,
        fleet,
    )


@cache
def truth_of(workload: Workload) -> Truth:
    """Return the true capacity of one engine for the mix of a workload.

    Also return the requests and KV tokens in the engine at 85 % of this capacity.
    """
    traffic = workload.make(np.random.default_rng(1234))
    step = workload.hardware.step
    ceiling = 1 / (
        step.prefill * float(np.mean(traffic.prompt - traffic.cached))
        + step.sequence * float(np.mean(traffic.answer))
    )
    idle = measure(workload, traffic, 0.02 * ceiling).attainment
    low, high = 0.02 * ceiling, ceiling
    for _ in range(9):
        middle = (low + high) / 2
        level = measure(workload, traffic, middle)
        if level.attainment >= workload.slo.objective * idle:
            low = middle
        else:
            high = middle
    target = measure(workload, traffic, 0.85 * low)
    return Truth(low, target.running, target.kv_used)

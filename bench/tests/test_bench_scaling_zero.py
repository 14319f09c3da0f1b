"""Tests the day and night of a service at zero, and the policies that end the last replica."""

import math

import numpy as np
import pytest

from scaling import zero as bench
from scaling.parts import HpaOn, concurrency
from scaling.peers import Knative
from scaling.simulation import Policy, Scenario, Simulation
from scaling.workloads import Traffic, traffic_of

BURST = 40
SECONDS = 1430.0
LATE = 1300.0
"""Time in seconds of a request after a silence that is longer than the idle time."""


def two_uses() -> Traffic:
    """Return requests at the start, and one request later."""
    arrival = np.append(np.linspace(10, 30, BURST), LATE)
    lengths = np.full(BURST + 1, 100)
    return traffic_of(arrival, lengths, lengths, SECONDS)


def served(policy: Policy, cold_start: float = 60.0) -> Simulation:
    return Simulation(bench.WORKLOAD, two_uses(), Scenario(cold_start, 1, 0)).run(policy)


@pytest.mark.parametrize(
    ("policy", "patience"),
    [
        (bench.OursAtZero(), 900),
        (bench.AtZero(HpaOn(concurrency, 100), 300, math.inf), 300),
        (bench.AtZero(Knative(), 90, 70), 90),
    ],
    ids=["ours", "keda", "knative"],
)
def test_the_replicas_end_after_the_idle_time_and_every_request_is_answered(
    policy: Policy, patience: float
) -> None:
    simulation = served(policy)
    history = np.array(simulation.history)
    empty = history[(history[:, 0] > 30) & (history[:, 1] == 0)]
    assert np.all(simulation.requests.finish >= 0)
    last_answer = np.max(simulation.requests.finish[:BURST])
    assert last_answer + patience - 1 <= empty[0, 0] <= last_answer + patience + 15
    assert empty[-1, 0] == LATE
    first = simulation.requests.first_token - simulation.requests.arrival
    assert np.max(first) < 60 * 1.25 + 15
    assert simulation.waited == BURST + 1
    # Nothing is known about the replicas before the first one.
    assert history[40, 1] == 1


def test_a_day_has_a_load_and_a_night_has_single_uses() -> None:
    traffic = bench.day_and_night(np.random.default_rng(3))
    again = bench.day_and_night(np.random.default_rng(3))
    assert traffic.arrival.tolist() == again.arrival.tolist()
    assert np.all(np.diff(traffic.arrival) >= 0)
    assert traffic.arrival[-1] < traffic.seconds - bench.QUIET_SECONDS
    hours, _ = np.histogram(traffic.arrival, np.arange(25) * bench.HOUR)
    assert np.argmax(hours) in (14, 13)
    night = [*hours[:7], *hours[22:]]
    assert 0 < sum(night) < 0.01 * sum(hours)
    assert sum(count == 0 for count in night) >= 3

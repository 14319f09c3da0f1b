"""Simulates a weekday after three weeks of weekdays, with and without a forecast.

The three weeks are not simulated. The history is filled with the load that they would show.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from llmservice_operator.scaling.forecast import LoadHistory
from scaling.engine import Array
from scaling.gates import Gate
from scaling.hardware import H100
from scaling.oracle import Oracle
from scaling.ours import Ours
from scaling.runs import SEEDS
from scaling.simulation import Scenario, Simulation
from scaling.truth import truth_of
from scaling.unseen import chat_at
from scaling.workloads import Generator, Traffic, Workload, poisson

HOUR, DAY = 3600.0, 86_400.0
BEGINS = 6 * HOUR
"""Time of day at which the simulation begins."""
SECONDS = 14 * HOUR
RAMP = 8 * HOUR
RAMP_SECONDS = 900.0
NIGHT, OFFICE = 5.0, 60.0
"""Requests per second outside and during the office hours."""
ENDS = 18 * HOUR
WATCHED_DAYS = 21
NOISE = 0.1
"""Standard deviation of the load of a day, and of each ten minutes, as a share of the load."""
JITTER_SECONDS = 120.0
"""Standard deviation of the beginning of the office hours."""


def rate_at(time: Array, begins: float = RAMP) -> Array:
    """Return the requests per second at a time of a weekday."""
    return np.where((time >= begins) & (time < ENDS), OFFICE, NIGHT)


def weekday(rng: Generator) -> Traffic:
    """Return the traffic of a weekday from six o'clock, with one ramp within seconds."""
    begins = RAMP + rng.normal(0, JITTER_SECONDS)
    day = rng.lognormal(0, NOISE)
    arrival = poisson(rng, lambda t: day * rate_at(t + BEGINS, begins), day * OFFICE, SECONDS)
    return chat_at(rng, arrival, SECONDS)


WORKLOAD = Workload("weekday", H100, 16, weekday)


def weekdays_before(rng: Generator) -> LoadHistory:
    """Return the history of three weeks at six o'clock of a Tuesday."""
    return _history(
        rng, lambda day, times: _weekday_load(rng, day, times), WATCHED_DAYS, begins_on=1
    )


def no_repetition(rng: Generator) -> LoadHistory:
    """Return the history of three weeks in which the load rises and falls at random times."""

    def load(_: int, times: Array) -> Array:
        edges = np.sort(rng.uniform(0, DAY, 6))
        return np.where(np.searchsorted(edges, times) % 2 == 1, OFFICE, NIGHT)

    return _history(rng, load, WATCHED_DAYS, begins_on=1)


def _weekday_load(rng: Generator, day: int, times: Array) -> Array:
    if day % 7 >= 5:
        return np.full(len(times), NIGHT)
    return rate_at(times, RAMP + rng.normal(0, JITTER_SECONDS))


def _history(
    rng: Generator, load: Callable[[int, Array], Array], days: int, begins_on: int
) -> LoadHistory:
    """Return the history of so many days. `begins_on` is the first day, 0 for a Monday."""
    capacity, history = truth_of(WORKLOAD).capacity, LoadHistory()
    times = np.arange(0.0, DAY, 60.0)
    for number in range(days + 1):
        factor = rng.lognormal(0, NOISE) * rng.lognormal(0, NOISE, len(times))
        percent = 100 * factor * load(begins_on + number, times) / capacity
        for time, value in zip(times, percent, strict=True):
            if number < days or time < BEGINS:
                history = history.add(number * DAY + time, float(value))
    now = history.until(days * DAY + BEGINS)
    # The simulation begins at the time 0, and only the distances between slots matter.
    return replace(now, slot=0)


@dataclass(frozen=True)
class Day:
    """Results of one simulated weekday."""

    ramp_percent: float
    """SLO attainment of the requests of the ramp, in percent."""
    gpu_hours: float


def simulated(history: LoadHistory, seed: int) -> Day:
    traffic = weekday(np.random.default_rng(1000 + seed))
    replicas = Oracle(WORKLOAD, traffic, 60.0).replicas[0]
    simulation = Simulation(WORKLOAD, traffic, Scenario(60.0, seed, replicas))
    simulation.run(Ours(history=history))
    arrival = traffic.arrival + BEGINS
    ramp = (arrival >= RAMP - RAMP_SECONDS) & (arrival < RAMP + RAMP_SECONDS)
    return Day(100 * float(np.mean(simulation.met[ramp])), simulation.gpu_hours)


def days_of(seed: int) -> tuple[Day, Day, Day]:
    """Return a day without a history, one after weekdays, and one after random days."""
    rng = np.random.default_rng(seed)
    histories = (LoadHistory(), weekdays_before(rng), no_repetition(rng))
    without, repeated, random = (simulated(history, seed) for history in histories)
    return without, repeated, random


def forecast_gates(jobs: int) -> Iterator[Gate]:
    """Yield the gates of the forecast. Print the attainment without a forecast."""
    with ProcessPoolExecutor(jobs) as pool:
        days = list(pool.map(days_of, SEEDS))
    print("ramp without a forecast:", ", ".join(f"{it[0].ramp_percent:.1f} %" for it in days))
    more = [
        tuple(100 * (it[which].gpu_hours / it[0].gpu_hours - 1) for it in days) for which in (1, 2)
    ]
    yield Gate("forecast", 98, True, "%", tuple(it[1].ramp_percent for it in days))
    yield Gate("forecast_gpu_hours", 3, False, "%", more[0])
    yield Gate("forecast_without_repetition", 0.5, False, "%", more[1])

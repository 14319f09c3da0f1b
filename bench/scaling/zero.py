"""Simulates a day and a night of a service that has no replicas while nobody uses it.

Requests wait in a router while there is no replica. The product with minReplicas: 0 is compared
with itself with minReplicas: 1, with a clairvoyant, and with two other projects that hold requests.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from llmservice_operator.api.autoscaling import Idle
from llmservice_operator.api.router import Router
from llmservice_operator.scaling.assess import TARGET_PERCENT
from llmservice_operator.scaling.hpa import HpaState
from llmservice_operator.scaling.idleness import Idleness, held_percent, may_rest, woken_replicas
from llmservice_operator.scaling.signals import Scrape
from scaling.engine import Array
from scaling.gates import Gate
from scaling.hardware import A10
from scaling.oracle import Oracle
from scaling.ours import Ours
from scaling.parts import HpaOn, Newest, concurrency
from scaling.peers import Knative
from scaling.runs import ORACLE, OURS, SEEDS
from scaling.simulation import Policy, Scenario, Simulation
from scaling.truth import truth_of
from scaling.workloads import Generator, Traffic, Workload, lognormal, poisson, traffic_of

HOUR, DAY = 3600.0, 86_400.0
MORNING, EVENING = 7 * HOUR, 22 * HOUR
PEAK = 6.0
"""Requests per second at the highest load of the day."""
SESSIONS_PER_HOUR = 0.5
"""Mean number of times per hour of the night at which somebody uses the service."""
SESSION_SECONDS = 180.0
"""Mean duration of such a use. It has a request every SESSION_PERIOD seconds on average."""
SESSION_PERIOD = 20.0
QUIET_SECONDS = 1800.0
"""Time in seconds without requests at the end, in which every answer is completed."""
COLD_START = 60.0
HOLD_SECONDS = Router().hold_timeout_seconds

ONE = "ours with minReplicas: 1"


def rate_of_day(time: Array) -> Array:
    """Return the requests per second at a time of the day, without the uses at night."""
    share = (time - MORNING) / (EVENING - MORNING)
    return np.where((share > 0) & (share < 1), PEAK * np.sin(np.pi * np.clip(share, 0, 1)) ** 2, 0)


def day_and_night(rng: Generator) -> Traffic:
    """Return the traffic of a day from midnight on."""
    arrivals = [poisson(rng, rate_of_day, PEAK, DAY)]
    for begin in poisson(rng, lambda t: np.full(len(t), SESSIONS_PER_HOUR / HOUR), 1 / HOUR, DAY):
        if MORNING <= begin < EVENING:
            continue
        count = 1 + rng.poisson(rng.exponential(SESSION_SECONDS) / SESSION_PERIOD)
        arrivals.append(begin + np.cumsum(rng.exponential(SESSION_PERIOD, count)))
    arrival = np.sort(np.concatenate(arrivals))
    arrival = arrival[arrival < DAY - QUIET_SECONDS]
    prompt = lognormal(rng, 300, 0.8, 8, 1500, len(arrival))
    return traffic_of(arrival, prompt, lognormal(rng, 150, 0.8, 2, 1000, len(arrival)), DAY)


WORKLOAD = Workload("day-and-night", A10, 12, day_and_night, first_replicas=0)


@dataclass
class OursAtZero(Ours):
    """Our policy with minReplicas: 0 and the default idle time."""

    has_router: bool = True
    idleness: Idleness = field(default_factory=Idleness)

    def step(self, view: Simulation) -> int | None:
        desired = super().step(view)
        if view.desired == 0:
            return self._wake(view) if view.held else None
        are_ready = not view.pending
        if are_ready and may_rest(self.idleness.seconds, Idle().after_seconds):
            self.hpa = HpaState()
            return 0
        return desired

    def _note(self, scrape: Scrape) -> None:
        self.idleness = self.idleness.add(scrape)

    def _wake(self, view: Simulation) -> int:
        state = self.state
        capacity, start = (
            (None, 0.0) if state is None else (state.capacity, state.cold_starts.estimate)
        )
        load = held_percent(view.held, capacity, start)
        return woken_replicas(load, TARGET_PERCENT, 0, view.workload.max_replicas)


class AtZero(Newest):
    """A policy of another project that ends the last replica after a time without requests, and
    starts replicas for the requests that its proxy holds.
    """

    def __init__(self, policy: Policy, patience: float, held_per_replica: float) -> None:
        self.policy, self.patience, self.held_per_replica = policy, patience, held_per_replica
        self.used_at = 0.0

    def step(self, view: Simulation) -> int | None:
        desired = self.policy.step(view)
        if concurrency(view):
            self.used_at = view.now
        if view.desired == 0:
            woken = max(math.ceil(view.held / self.held_per_replica), 1)
            return min(woken, view.workload.max_replicas) if view.held else None
        return 0 if view.now - self.used_at >= self.patience else desired


def policies(traffic: Traffic) -> dict[str, Policy]:
    """Return all policies by name.

    KEDA's HTTP add-on starts one replica for the first held request, scales with the requests in
    progress, 100 per replica by default, and ends the last replica after 300 seconds. Knative's
    autoscaler counts the requests that the activator holds, and ends the last replica after a
    stable window of 60 seconds and a grace period of 30 seconds.
    """
    requests = max(truth_of(WORKLOAD).running_at_target, 1.0)
    return {
        OURS: OursAtZero(),
        ORACLE: Oracle(WORKLOAD, traffic, COLD_START, least=0),
        ONE: Ours(has_router=True),
        "keda-http": AtZero(HpaOn(concurrency, 100), 300, math.inf),
        "keda-http-tuned": AtZero(HpaOn(concurrency, requests), 300, math.inf),
        "knative": AtZero(Knative(), 90, 70),
        "knative-tuned": AtZero(Knative(requests), 90, requests),
    }


@dataclass(frozen=True)
class Night:
    """Results of one simulated day and night."""

    policy: str
    seed: int
    gpu_hours: float
    attainment_percent: float
    waited: int
    """Requests that waited for a replica."""
    longest_wait: float
    """Longest time in seconds until the first token."""
    lost: int
    """Requests without an answer, or without a token within the hold timeout of the router."""

    @property
    def line(self) -> str:
        return (
            f"{self.policy:<26}{self.gpu_hours:>8.2f} GPU-h{self.attainment_percent:>8.2f} %"
            f"{self.waited:>7} waited, at most {self.longest_wait:.0f} s{self.lost:>5} lost"
        )


def simulated(policy: str, seed: int) -> Night:
    traffic = day_and_night(np.random.default_rng(1000 + seed))
    simulation = Simulation(WORKLOAD, traffic, Scenario(COLD_START, seed, int(policy == ONE)))
    simulation.run(policies(traffic)[policy])
    requests = simulation.requests
    waits = requests.first_token - requests.arrival
    is_lost = (requests.finish < 0) | (waits > HOLD_SECONDS)
    return Night(
        policy,
        seed,
        simulation.gpu_hours,
        simulation.attainment_percent,
        simulation.waited,
        float(np.max(waits)),
        int(np.sum(is_lost)) + simulation.cut,
    )


def zero_gates(jobs: int) -> Iterator[Gate]:
    """Yield the gates of a service at zero. Print the results of all policies with one seed."""
    truth_of(WORKLOAD)  # is cached before the processes start
    names = list(policies(day_and_night(np.random.default_rng(0))))
    runs = [
        (name, seed)
        for seed in SEEDS
        for name in names
        if name in (OURS, ORACLE) or seed == SEEDS[0]
    ]
    with ProcessPoolExecutor(jobs) as pool:
        nights = list(pool.map(simulated, *zip(*runs, strict=True)))
    for night in nights:
        if night.seed == SEEDS[0]:
            print(night.line)
    hours = {(it.policy, it.seed): it.gpu_hours for it in nights}
    against = tuple(hours[OURS, seed] / hours[ORACLE, seed] for seed in SEEDS)
    yield Gate("zero_gpu_hours", 1.15, False, "", against)
    lost = tuple(float(it.lost) for it in nights if it.policy == OURS)
    yield Gate("zero_requests_lost", 0, False, "", lost)

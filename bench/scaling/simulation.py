"""Simulates one service under one policy: pods start cold, serve, drain, and cost GPU time.

Time advances in steps of one second. Within a second, each engine has a separate clock.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from scaling.choices import Router, Routing, new_router
from scaling.dispatch import run_until
from scaling.engine import Array, Fleet, Requests, new_fleet, new_requests, seed_noise
from scaling.hardware import slo_array
from scaling.workloads import Traffic, Workload

EXCLUDED_SECONDS = 300.0
"""Time in seconds at the start of a simulation that no figure includes, because every policy needs
time to adapt."""

DRAIN_DEADLINE_SECONDS = 600.0
COLD_START_SPREAD = (0.85, 1.25)
HUNG_SECONDS = 180.0
"""Time in seconds after which the kubelet restarts a model server whose engine hangs: 120 s until
the server reports the hang, and a minute of failed probes."""
BUCKET_SECONDS = 20.0


@dataclass
class Pod:
    """A replica from its creation to its end."""

    name: str
    engine: int
    created: float
    ready_due: float
    started: float
    """Start time of the model server's process."""
    is_ready: bool = False
    ready_at: float | None = None
    draining_since: float | None = None

    @property
    def is_draining(self) -> bool:
        return self.draining_since is not None


@dataclass(frozen=True)
class Scenario:
    """Conditions of a simulation, apart from the traffic."""

    cold_start: float
    seed: int
    initial_replicas: int
    outage: tuple[float, float] | None = None
    """Start and end in seconds of a span in which every scrape fails. None if there is none."""
    never_ready: int | None = None
    """Number of the pod that never becomes ready. None if every pod becomes ready. Pods are
    numbered from 1 in order of creation, without those that exist at the start of the simulation.
    """
    hung_at: float | None = None
    """Time in seconds at which the engine of the oldest replica hangs. The replica stays Ready and
    reports its last counters, until its model server is restarted after HUNG_SECONDS. None if no
    engine hangs."""
    restart: tuple[float, float] | None = None
    """Start and end in seconds of a span in which no metrics server runs. The one that starts
    afterwards knows only what the status contains. None if there is none."""


class Policy(Protocol):
    """A policy that decides on replicas."""

    def step(self, view: "Simulation") -> int | None:
        """Return the desired number of replicas at this second. None to leave it unchanged."""

    def victim_order(self, view: "Simulation", pods: list[Pod]) -> list[Pod]:
        """Return the Ready pods in the order of their removal."""


@dataclass
class Simulation:
    """The service as policies see it. Every policy sees metrics that are at most one second old."""

    workload: Workload
    traffic: Traffic
    scenario: Scenario
    routing: Routing = Routing.LEAST_REQUESTS
    now: float = 0.0
    desired: int = 0
    pods: list[Pod] = field(default_factory=list)
    held: int = 0
    """Number of requests that wait because no replica is ready, or because the routing holds them.
    """
    waited: int = 0
    """Number of requests that have begun to wait for a replica so far."""
    requests: Requests = field(init=False)
    fleet: Fleet = field(init=False)
    router: Router = field(init=False)
    history: list[tuple[float, int, int, float]] = field(default_factory=list)
    """Tuples of time, desired replicas, ready replicas, and requests in the service."""
    events: int = 0
    scale_ups: int = 0
    cut: int = 0

    def __post_init__(self) -> None:
        traffic, engines = self.traffic, 3 * self.workload.max_replicas
        self.requests = new_requests(
            traffic.arrival, traffic.prompt, traffic.answer, traffic.cached
        )
        self.fleet = new_fleet(engines, self.workload.hardware.limits.max_sequences)
        self.router = new_router(self.routing, traffic.answer)
        self._free = deque(range(engines))
        self._rng = np.random.default_rng(self.scenario.seed)
        self._created = 0
        self._pod_seconds = 0.0
        seed_noise(self.scenario.seed)
        self.desired = self.scenario.initial_replicas
        for _ in range(self.desired):
            self._create(ready_now=True)

    @property
    def ready(self) -> list[Pod]:
        return [pod for pod in self.pods if pod.is_ready and not pod.is_draining]

    @property
    def pending(self) -> list[Pod]:
        return [pod for pod in self.pods if not pod.is_ready and not pod.is_draining]

    @property
    def is_blind(self) -> bool:
        outage = self.scenario.outage
        return outage is not None and outage[0] <= self.now < outage[1]

    @property
    def is_unwatched(self) -> bool:
        """Whether no metrics server runs."""
        restart = self.scenario.restart
        return restart is not None and restart[0] <= self.now < restart[1]

    def running(self, pods: list[Pod]) -> Array:
        return self.fleet.running[[pod.engine for pod in pods]]

    def waiting(self, pods: list[Pod]) -> Array:
        return self.fleet.waiting[[pod.engine for pod in pods]]

    def kv_usage(self, pods: list[Pod]) -> Array:
        capacity = self.workload.hardware.limits.kv_capacity_tokens
        return self.fleet.kv_used[[pod.engine for pod in pods]] / capacity

    def to_compute(self, pods: list[Pod]) -> Array:
        """Return the prompt tokens that the queue of each pod still has to compute."""
        return self.fleet.to_compute[[pod.engine for pod in pods]]

    def totals(self, pods: list[Pod]) -> Array:
        return self.fleet.totals[[pod.engine for pod in pods]]

    def run(self, policy: Policy) -> "Simulation":
        """Serve the whole traffic under a policy."""
        hardware = self.workload.hardware
        step, limits = hardware.step_array, hardware.limits_array
        slo = slo_array(self.workload.slo)
        first = arrived_before = 0
        hung: Pod | None = None
        while self.now < self.traffic.seconds:
            active = np.array(
                [pod.engine for pod in self.pods if pod.is_ready or pod.is_draining], np.int64
            )
            until = self.now + 1.0
            begun = self.router.begun
            first = run_until(
                self.requests, self.fleet, self.router, active, first, until, step, limits, slo
            )
            arrived = int(np.searchsorted(self.traffic.arrival, until))
            self.waited += arrived - max(first, arrived_before) + self.router.begun - begun
            self.held, arrived_before = arrived - first + self.router.held, arrived
            self.now = until
            self._advance_pods()
            if self.now == self.scenario.hung_at:
                hung = self.ready[0]
                self.fleet.clock[hung.engine] = np.inf
            if hung in self.pods and self.now == (self.scenario.hung_at or 0) + HUNG_SECONDS:
                self._restart(hung)
            desired = policy.step(self)
            if desired is not None and desired != self.desired:
                is_counted = self.now > EXCLUDED_SECONDS
                self.events += is_counted
                self.scale_ups += is_counted and desired > self.desired
                self.desired = desired
                self._scale(policy)
            if self.now > EXCLUDED_SECONDS:
                self._pod_seconds += len(self.pods)
            inside = int(np.sum(self.fleet.running[active]) + np.sum(self.fleet.waiting[active]))
            self.history.append((self.now, self.desired, len(self.ready), inside + self.held))
        return self

    def _create(self, *, ready_now: bool = False) -> None:
        if not self._free:
            raise RuntimeError("more pods than engines: the policy ignores its maximum")
        engine = self._free.popleft()
        self._clear(engine)
        due = self._ready_due()
        if not ready_now:
            self._created += 1
            if self._created == self.scenario.never_ready:
                due = np.inf
        pod = Pod(f"pod-{self._created}-{engine}", engine, self.now, due, self.now)
        self.pods.append(pod)
        if ready_now:
            self._become_ready(pod)

    def _ready_due(self) -> float:
        low, high = COLD_START_SPREAD
        return self.now + self.scenario.cold_start * self._rng.uniform(low, high)

    def _clear(self, engine: int) -> None:
        """Set the counters of an engine to zero."""
        for row in (*self.fleet[7:8], *self.fleet[10:]):
            row[engine] = 0

    def _restart(self, pod: Pod) -> None:
        """Restart the model server of a pod. The requests in it are lost."""
        self._empty(pod.engine)
        self._clear(pod.engine)
        self.fleet.routable[pod.engine] = 0
        pod.is_ready, pod.ready_at = False, None
        pod.ready_due, pod.started = self._ready_due(), self.now

    def _become_ready(self, pod: Pod) -> None:
        pod.is_ready, pod.ready_at = True, self.now
        self.fleet.clock[pod.engine] = self.now
        self.fleet.routable[pod.engine] = 1

    def _advance_pods(self) -> None:
        kept = []
        for pod in self.pods:
            if not pod.is_ready and not pod.is_draining and self.now >= pod.ready_due:
                self._become_ready(pod)
            if pod.draining_since is not None:
                left = int(self.fleet.running[pod.engine] + self.fleet.waiting[pod.engine])
                overdue = self.now - pod.draining_since > DRAIN_DEADLINE_SECONDS
                if left == 0 or overdue:
                    self.cut += left
                    self._remove(pod)
                    continue
            kept.append(pod)
        self.pods = kept

    def _remove(self, pod: Pod) -> None:
        self._empty(pod.engine)
        self._free.append(pod.engine)

    def _empty(self, engine: int) -> None:
        """Drop the requests in an engine."""
        fleet = self.fleet
        fleet.running[engine] = fleet.waiting[engine] = 0
        fleet.kv_used[engine] = fleet.kv_read[engine] = fleet.to_compute[engine] = 0
        fleet.head[engine] = fleet.tail[engine] = -1
        fleet.head_admitted[engine] = 0

    def _scale(self, policy: Policy) -> None:
        have = self.ready + self.pending
        for _ in range(self.desired - len(have)):
            self._create()
        surplus = len(have) - self.desired
        if surplus <= 0:
            return
        newest_first = sorted(self.pending, key=lambda pod: -pod.created)
        for pod in (newest_first + policy.victim_order(self, self.ready))[:surplus]:
            if not pod.is_ready:
                self._free.append(pod.engine)
                self.pods.remove(pod)
                continue
            pod.draining_since = self.now
            self.fleet.routable[pod.engine] = 0

    @property
    def gpu_hours(self) -> float:
        return self._pod_seconds / 3600

    @property
    def met(self) -> Array:
        """Whether each request met the SLO. A request that never started has missed it."""
        fast = self.met_ttft
        requests = self.requests
        done = requests.finish >= 0
        end = np.where(done, requests.finish, self.now)
        steps = np.maximum(np.where(done, requests.answer, requests.generated) - 1, 1)
        _, itl_limit = slo_array(self.workload.slo)
        smooth: Array = end - requests.first_token <= itl_limit * steps
        return fast & smooth

    @property
    def met_ttft(self) -> Array:
        requests = self.requests
        ttft_limit, _ = slo_array(self.workload.slo)
        started = requests.first_token >= 0
        in_time: Array = requests.first_token - requests.arrival <= ttft_limit
        return started & in_time

    @property
    def counted(self) -> Array:
        """Whether each request counts in the figures.

        Requests of the first EXCLUDED_SECONDS do not count. Requests of the last five seconds of
        the traffic do not count either, because the simulation may end before their answers.
        """
        arrival = self.requests.arrival
        return (arrival > EXCLUDED_SECONDS) & (arrival < self.traffic.seconds - 5)

    @property
    def attainment_percent(self) -> float:
        return 100 * float(np.mean(self.met[self.counted]))

    def recovery_seconds(self, burst_at: float, span: float = 600.0) -> float:
        """Return the seconds from the start of a burst until the TTFT objective is met and stays
        met. The requests of each interval of BUCKET_SECONDS are judged together.
        """
        arrival, met = self.requests.arrival, self.met_ttft
        recovered = 0.0
        for start in np.arange(burst_at, burst_at + span, BUCKET_SECONDS):
            inside = (arrival >= start) & (arrival < start + BUCKET_SECONDS)
            if np.any(inside) and np.mean(met[inside]) < self.workload.slo.objective:
                recovered = start + BUCKET_SECONDS - burst_at
        return float(recovered)

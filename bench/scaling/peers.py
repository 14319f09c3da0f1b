"""Implements the policies of other autoscalers from their documented rules.

Each policy computes its averages from metrics that are at most one second old, which is fresher
than in any cluster. Policies have the default settings of their releases. Policies whose name
contains `tuned` have settings for each workload, computed from the true capacity, which no user
knows.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from llmservice_operator.scaling.hpa import (
    Behavior,
    ChangePolicy,
    HpaSpec,
    HpaState,
    PolicyType,
    ScalingRules,
    decide,
)
from scaling.engine import BUSY_SECONDS
from scaling.simulation import Pod, Policy, Simulation
from scaling.truth import Truth

Signal = Callable[[Simulation], float]


def concurrency(view: Simulation) -> float:
    """Return the requests inside the service, running or waiting."""
    ready = view.ready
    return float(np.sum(view.running(ready)) + np.sum(view.waiting(ready))) + view.held


def waiting(view: Simulation) -> float:
    return float(np.sum(view.waiting(view.ready))) + view.held


class Newest:
    """Scale-down of a plain ReplicaSet: the newest pod is removed first."""

    def victim_order(self, view: Simulation, pods: list[Pod]) -> list[Pod]:
        return sorted(pods, key=lambda pod: -pod.created)


@dataclass
class Average:
    """Mean of the last `seconds` samples of a signal. With one sample per second, this is a time
    span in seconds.
    """

    seconds: int
    values: deque[float] = field(default_factory=deque)

    def add(self, value: float) -> float:
        self.values.append(value)
        if len(self.values) > self.seconds:
            self.values.popleft()
        return self.mean

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


def clamp(view: Simulation, replicas: float) -> int:
    return int(min(max(replicas, 1), view.workload.max_replicas))


def slow(window_seconds: float) -> ScalingRules:
    return ScalingRules(window_seconds, (ChangePolicy(PolicyType.PERCENT, 100, 15),))


DEFAULT_UP = ScalingRules(
    0,
    (ChangePolicy(PolicyType.PODS, 4, 15), ChangePolicy(PolicyType.PERCENT, 100, 15)),
)
DEFAULT = Behavior(DEFAULT_UP, slow(300))
"""Behavior of an HPA whose spec sets none."""


class HpaOn(Newest):
    """HorizontalPodAutoscaler on the total of a metric, with an AverageValue target."""

    def __init__(self, total: Signal, target: float, behavior: Behavior = DEFAULT) -> None:
        self.total, self.target, self.behavior = total, target, behavior
        self.state = HpaState()

    def step(self, view: Simulation) -> int | None:
        total = self.total(view)
        if view.now % 15:
            return None
        spec = HpaSpec(self.behavior, 1, view.workload.max_replicas, self.target)
        decision = decide(self.state, spec, view.desired, total, view.now)
        self.state = decision.state
        return decision.replicas


class DutyCycle(HpaOn):
    """HPA on the GPU's duty cycle (NVML utilization), type Pods, target 85 %.

    For a scale-up, pods that are not ready are taken as idle. For a scale-down, they are ignored.
    """

    def __init__(self) -> None:
        super().__init__(self._sum, 85.0)
        self.busy: dict[str, deque[float]] = {}

    def _sum(self, view: Simulation) -> float:
        ready = view.ready
        shares = []
        for pod, totals in zip(ready, view.totals(ready), strict=True):
            seen = self.busy.setdefault(pod.name, deque(maxlen=16))
            seen.append(float(totals[BUSY_SECONDS]))
            shares.append(100 * min((seen[-1] - seen[0]) / max(len(seen) - 1, 1), 1.0))
        total = sum(shares)
        if shares and total / len(shares) <= self.target:
            # For a scale-down, the HPA averages over ready pods only. Assigning this mean to every
            # other pod, too, gives the same average.
            return total / len(shares) * view.desired
        return total


class Kaito(Newest):
    """KAITO: adds at most one replica in five minutes while more than 10 requests per replica wait,
    and removes at most one in ten minutes while fewer wait.
    """

    def __init__(self) -> None:
        behavior = Behavior(
            ScalingRules(60, (ChangePolicy(PolicyType.PODS, 1, 300),)),
            ScalingRules(300, (ChangePolicy(PolicyType.PODS, 1, 600),)),
        )
        self.step = HpaOn(waiting, 10, behavior).step


class KubeAI(Newest):
    """KubeAI: mean number of active requests in ten minutes, divided by a target.

    It removes replicas only when the result has been lower for 30 seconds.
    """

    def __init__(self, target: float = 100.0) -> None:
        self.target, self.active, self.lower_since = target, Average(60), 0.0

    def step(self, view: Simulation) -> int | None:
        if view.now % 10:
            return None
        desired = clamp(view, math.ceil(self.active.add(concurrency(view)) / self.target))
        if desired >= view.desired:
            self.lower_since = view.now
            return desired
        return desired if view.now - self.lower_since >= 30 else None


class Knative(Newest):
    """Knative: concurrency divided by a target, with a stable window of one minute and a panic
    window of six seconds.
    """

    def __init__(self, target: float = 70.0) -> None:
        self.target = target
        self.stable, self.panic = Average(60), Average(6)
        self.panicked_at, self.most = -math.inf, 0

    def step(self, view: Simulation) -> int | None:
        now = concurrency(view)
        self.stable.add(now)
        self.panic.add(now)
        if view.now % 2:
            return None
        ready = max(len(view.ready), 1)
        desired = math.ceil(self.stable.mean / self.target)
        urgent = math.ceil(self.panic.mean / self.target)
        if urgent / ready >= 2:
            if view.now - self.panicked_at > 60:
                self.most = 0
            self.panicked_at = view.now
        if view.now - self.panicked_at <= 60:
            self.most = max(self.most, urgent, desired, view.desired)
            return clamp(view, self.most)
        return clamp(view, min(max(desired, math.floor(ready / 2)), 1000 * ready))


class WvaOne(Newest):
    """llm-d workload variant autoscaler, first version: scales by the spare KV cache and the spare
    queue length, one replica at a time.
    """

    def __init__(self) -> None:
        self.desired = 1.0
        self.kv: dict[str, Average] = {}
        self.queue: dict[str, Average] = {}
        rules = slow(240)
        self.hpa = HpaOn(
            lambda view: self.desired, 1.0, Behavior(ScalingRules(240, DEFAULT_UP.policies), rules)
        )

    def step(self, view: Simulation) -> int | None:
        ready = view.ready
        samples = zip(ready, view.kv_usage(ready), view.waiting(ready), strict=True)
        room_kv, room_queue = [], []
        for pod, kv, queued in samples:
            most_kv = max(_peak(self.kv, pod.name, float(kv)))
            most_queue = max(_peak(self.queue, pod.name, float(queued)))
            if most_kv < 0.8 and most_queue < 5:
                room_kv.append(0.8 - most_kv)
                room_queue.append(5 - most_queue)
        if view.now % 60 == 0:
            self.desired = float(self._decide(view, room_kv, room_queue))
        return self.hpa.step(view)

    def _decide(self, view: Simulation, room_kv: list[float], room_queue: list[float]) -> int:
        count = len(view.ready)
        if view.pending or count == 0:
            return view.desired
        if not room_kv or np.mean(room_kv) < 0.1 or np.mean(room_queue) < 3:
            return clamp(view, count + 1)
        free = len(room_kv)
        if free > 1:
            used_kv = (0.8 - float(np.mean(room_kv))) * free / (free - 1)
            used_queue = (5 - float(np.mean(room_queue))) * free / (free - 1)
            if 0.8 - used_kv >= 0.1 and 5 - used_queue >= 3:
                return clamp(view, count - 1)
        return count


def _peak(averages: dict[str, Average], name: str, value: float) -> deque[float]:
    average = averages.setdefault(name, Average(60))
    average.add(value)
    return average.values


class WvaTwo(Newest):
    """llm-d workload variant autoscaler, second version: compares the demand for KV tokens with the
    capacity of the replicas.

    The capacity of a replica is 80 % of its KV tokens, or the mean number of KV tokens in use while
    at least five requests waited, if that is less.
    """

    def __init__(self, window_seconds: float) -> None:
        self.desired = 1.0
        self.saturated: deque[float] = deque(maxlen=10)
        rules = ScalingRules(window_seconds, DEFAULT_UP.policies)
        self.hpa = HpaOn(lambda view: self.desired, 1.0, Behavior(rules, slow(window_seconds)))

    def step(self, view: Simulation) -> int | None:
        if view.now % 60 == 0 and view.ready:
            self.desired = float(self._decide(view))
        return self.hpa.step(view)

    def _decide(self, view: Simulation) -> int:
        ready = view.ready
        tokens = view.kv_usage(ready) * view.workload.hardware.limits.kv_capacity_tokens
        queued = view.waiting(ready)
        self.saturated.extend(float(t) for t, q in zip(tokens, queued, strict=True) if q >= 5)
        capacity = 0.8 * view.workload.hardware.limits.kv_capacity_tokens
        if self.saturated:
            capacity = min(capacity, float(np.mean(self.saturated)))
        prompt = float(np.mean(view.traffic.prompt))
        demand = float(np.sum(tokens)) + (float(np.sum(queued)) + view.held) * prompt
        supply = (len(ready) + len(view.pending)) * capacity
        short = demand / 0.85 - supply
        if short > 0:
            return clamp(view, view.desired + math.ceil(short / capacity))
        spare = len(ready) * capacity - demand / 0.70
        return (
            clamp(view, view.desired - math.floor(spare / capacity)) if spare > 0 else view.desired
        )


class AIBrix(Newest):
    """AIBrix: mean KV usage of the pods, divided by a target. A step at most doubles or halves the
    number of replicas.

    With `is_kpa`, the mean is not multiplied by the number of pods, as in AIBrix's source. The
    scale-down "cooldown" uses the lowest recommendation of 300 seconds, also as in the source. With
    `guarded`, it uses the highest recommendation.
    """

    def __init__(self, target: float = 0.5, *, is_kpa: bool = False, guarded: bool = False) -> None:
        self.target, self.is_kpa, self.guarded = target, is_kpa, guarded
        self.stable, self.panic = Average(180), Average(60)
        self.recommended: deque[int] = deque(maxlen=30)

    def step(self, view: Simulation) -> int | None:
        ready = view.ready
        mean = float(np.mean(view.kv_usage(ready))) if ready else 0.0
        self.stable.add(mean)
        self.panic.add(mean)
        if view.now % 10:
            return None
        value = self.stable.mean
        if self.is_kpa and self.panic.mean > 2 * value:
            value = self.panic.mean
        pods = 1 if self.is_kpa else view.desired
        desired = math.ceil(pods * value / self.target)
        if abs(value / self.target - 1) <= 0.1 and not self.is_kpa:
            desired = view.desired
        desired = clamp(view, min(max(desired, view.desired // 2), 2 * view.desired))
        self.recommended.append(desired)
        if desired < view.desired:
            choose = max if self.guarded else min
            desired = min(choose(self.recommended), view.desired)
        return clamp(view, desired)


class Dynamo(Newest):
    """Dynamo's planner by load: adds or removes one pod at a time, by the used and queued KV blocks
    as a share of all KV blocks.
    """

    def __init__(self, up: float = 1.0, down: float = 0.6) -> None:
        self.up, self.down = up, down

    def step(self, view: Simulation) -> int | None:
        if view.now % 5 or view.pending or not view.ready:
            return None
        return self.by_load(view)

    def by_load(self, view: Simulation) -> int:
        ready = view.ready
        capacity = view.workload.hardware.limits.kv_capacity_tokens
        queued = view.waiting(ready) * float(np.mean(view.traffic.prompt)) / capacity
        load = view.kv_usage(ready) + queued
        if np.any(load > self.up):
            return clamp(view, view.desired + 1)
        if np.all(load < self.down):
            return clamp(view, view.desired - 1)
        return view.desired


class DynamoSla(Newest):
    """Dynamo's planner by SLA: the planner by load, with a lower bound of replicas.

    Every three minutes, the bound is computed from the predicted request rate. The true capacity
    replaces the rate per engine, which Dynamo takes from an offline profile.
    """

    def __init__(self, capacity: float) -> None:
        self.capacity, self.floor = capacity, 1
        self.load = Dynamo()
        self.rates: deque[float] = deque(maxlen=5)

    def step(self, view: Simulation) -> int | None:
        if view.now % 180 == 0:
            arrival = view.traffic.arrival
            seen = np.searchsorted(arrival, [view.now - 180, view.now])
            self.rates.append(float(seen[1] - seen[0]) / 180)
            steps = np.arange(len(self.rates))
            trend = np.polyfit(steps, self.rates, 1)[0] if len(steps) > 2 else 0.0
            predicted = max(self.rates[-1] + trend, 0.0)
            self.floor = clamp(view, math.ceil(predicted / self.capacity))
        if view.now % 5 or view.pending or not view.ready:
            return max(self.floor, view.desired) if view.desired < self.floor else None
        desired = self.load.by_load(view)
        return clamp(view, max(desired, self.floor))


def peers(truth: Truth) -> dict[str, Policy]:
    """Return every peer by name. The tuned peers aim at 85 % of the true capacity."""
    requests = max(truth.running_at_target, 1.0)
    kv = max(truth.kv_at_target, 0.01)
    return {
        "hpa-duty-cycle": DutyCycle(),
        "keda-waiting": HpaOn(waiting, 5),
        "llm-d-concurrency-tuned": HpaOn(concurrency, requests),
        "llm-d-wva1": WvaOne(),
        "llm-d-wva2-fast": WvaTwo(0),
        "llm-d-wva2-chart": WvaTwo(240),
        "kubeai": KubeAI(),
        "kubeai-tuned": KubeAI(requests),
        "knative": Knative(),
        "knative-tuned": Knative(requests),
        "aibrix-apa": AIBrix(),
        "aibrix-apa-tuned": AIBrix(kv, guarded=True),
        "aibrix-kpa": AIBrix(is_kpa=True),
        "kaito": Kaito(),
        "dynamo-throughput": Dynamo(),
        "dynamo-latency": Dynamo(0.4, 0.1),
        "dynamo-sla": DynamoSla(truth.capacity),
    }

"""Implements the autoscalers of llm-d: its workload variant autoscaler, and KEDA with the metrics
of its endpoint picker.
"""

import math
from collections import deque

import numpy as np

from llmservice_operator.scaling.hpa import Behavior, ChangePolicy, PolicyType, ScalingRules
from scaling.parts import DEFAULT_UP, Average, HpaOn, Newest, clamp, concurrency, slow
from scaling.simulation import Simulation


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


class TokenAware(HpaOn):
    """llm-d's token-aware autoscaling: KEDA on the seconds of prompts that are still to be
    computed, 1.5 per replica, and on the used share of the KV tokens, 0.8 per replica.

    The greater demand counts. The HPA adds one replica in three minutes, and removes one in five.
    The prompt tokens per second are calibrated as in the guide: one full step on an idle engine.
    With `is_tuned`, a replica may have as many seconds of prompts as the TTFT limit leaves after
    its own prompt, as the guide advises, but at least a tenth of the limit.
    (llm-d/llm-d: guides/workload-autoscaling/keda-epp-token-aware)
    """

    def __init__(self, *, is_tuned: bool = False) -> None:
        behavior = Behavior(
            ScalingRules(0, (ChangePolicy(PolicyType.PODS, 1, 180),)),
            ScalingRules(300, (ChangePolicy(PolicyType.PODS, 1, 300),)),
        )
        super().__init__(self._demand, 1.0, behavior)
        self.is_tuned = is_tuned

    def _demand(self, view: Simulation) -> float:
        hardware, ready = view.workload.hardware, view.ready
        most = hardware.limits.max_step_tokens
        per_second = most / (hardware.step.fixed + hardware.step.prefill * most)
        limit = 1.5
        if self.is_tuned and view.workload.slo.ttft_seconds is not None:
            own = float(np.mean(view.traffic.prompt - view.traffic.cached)) / per_second
            limit = max(view.workload.slo.ttft_seconds - own, 0.1 * view.workload.slo.ttft_seconds)
        backlog = float(np.sum(view.to_compute(ready))) / per_second
        return max(backlog / limit, float(np.sum(view.kv_usage(ready))) / 0.8)


class Held(HpaOn):
    """KEDA on the requests that llm-d's flow control holds, 1 per replica, and on the requests in
    the replicas, 16 per replica.

    (llm-d/llm-d: guides/workload-autoscaling/keda-epp)
    """

    def __init__(self, target: float = 16.0) -> None:
        fast = (ChangePolicy(PolicyType.PERCENT, 100, 15),)
        behavior = Behavior(ScalingRules(0, fast), ScalingRules(300, fast))
        super().__init__(
            lambda view: max(float(view.held), (concurrency(view) - view.held) / target),
            1.0,
            behavior,
        )

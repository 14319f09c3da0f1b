"""Implements the planner of Dynamo, by its four ways to scale."""

import math
from collections import deque

import numpy as np

from scaling.engine import Array
from scaling.hardware import slo_array
from scaling.parts import Newest, clamp
from scaling.simulation import Simulation


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
    """Dynamo's planner by SLA, with throughput-based scaling, its default for this target.

    Every three minutes, the replicas follow from the predicted request rate. The true capacity
    replaces the rate per engine, which Dynamo takes from an offline profile. With `by_load`, this
    number is only the lower bound of load-based scaling: every five seconds, one replica is added
    while the estimated TTFT or ITL exceeds its limit in every replica, and one is removed if both
    would stay within 80 % of their limits without it. The true step model replaces the regression.
    (ai-dynamo/dynamo: Planner Guide, planner/core/load_scaling.py)
    """

    def __init__(self, capacity: float, *, by_load: bool = False) -> None:
        self.capacity, self.by_load, self.floor = capacity, by_load, 1
        self.rates: deque[float] = deque(maxlen=5)

    def step(self, view: Simulation) -> int | None:
        if view.now % 180 == 0:
            self.floor = self._predicted(view)
            if not self.by_load:
                return self.floor
        if not self.by_load or view.now % 5:
            return None
        if view.pending or not view.ready:
            return self.floor if view.desired < self.floor else None
        return clamp(view, max(view.desired + self._change(view), self.floor))

    def _predicted(self, view: Simulation) -> int:
        arrival = view.traffic.arrival
        seen = np.searchsorted(arrival, [view.now - 180, view.now])
        self.rates.append(float(seen[1] - seen[0]) / 180)
        steps = np.arange(len(self.rates))
        trend = np.polyfit(steps, self.rates, 1)[0] if len(steps) > 2 else 0.0
        return clamp(view, math.ceil(max(self.rates[-1] + trend, 0.0) / self.capacity))

    def _change(self, view: Simulation) -> int:
        """Return by how many replicas the load-based scaling changes their number."""
        ready, hardware = view.ready, view.workload.hardware
        ttft, itl = slo_array(view.workload.slo)
        queued, kv = view.to_compute(ready), view.kv_usage(ready)
        kv = kv * hardware.limits.kv_capacity_tokens
        own = float(np.mean(view.traffic.prompt - view.traffic.cached))
        running = view.running(ready)

        def first_token(queue: Array, factor: float) -> Array:
            most = hardware.limits.max_step_tokens
            seconds = self._step(view, factor * running, factor * kv) + hardware.step.prefill * most
            return np.maximum(np.ceil((factor * queue + own) / most), 1) * seconds

        by_ttft = first_token(queued, 1.0)
        by_itl = self._step(view, running, kv)
        if np.all(by_ttft > ttft) or np.all(by_itl > itl):
            return 1
        count = len(ready)
        if count < 2:
            return 0
        more = count / (count - 1)
        alone = first_token(0 * queued, more)
        in_time = first_token(queued, more) - alone < 0.8 * (ttft - alone)
        pressed = more * (kv + queued)
        fits = pressed < hardware.limits.kv_capacity_tokens
        smooth = self._step(view, more * running, pressed) < 0.8 * itl
        return -1 if np.all(in_time & fits & smooth) else 0

    def _step(self, view: Simulation, running: Array, kv: Array) -> Array:
        """Return the seconds of a step without prompts."""
        step = view.workload.hardware.step
        seconds: Array = step.fixed + step.sequence * running + step.kv * kv
        return seconds

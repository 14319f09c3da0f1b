"""Contains the parts that several peers share: signals, averages, and the rules of an HPA."""

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
from scaling.simulation import Pod, Simulation

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

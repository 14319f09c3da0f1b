"""Simulates a fleet of engines whose requests are routed one by one."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numba import njit

from routing.traces import Trace
from scaling.engine import (
    CACHED_BLOCKS,
    NOISE,
    Array,
    Fleet,
    Requests,
    enqueue,
    new_fleet,
    new_requests,
    run_engine,
    seed_noise,
)
from scaling.hardware import Hardware

SLO = np.array([2.0, 0.05])
"""Limits of TTFT and ITL in seconds."""


@njit(cache=True)
def _run_all(
    requests: Requests, fleet: Fleet, until: float, steps: Array, limits: Array, slo: Array
) -> None:
    for engine in range(len(steps)):
        run_engine(requests, fleet, engine, until, steps[engine], limits, slo)


class Policy(Protocol):
    def choose(self, view: "Service", request: int, now: float) -> int:
        """Return the engine of a request that arrives now."""


@dataclass
class Service:
    """One service with a fixed number of replicas."""

    trace: Trace
    hardware: Hardware
    replicas: int
    cached_blocks: int
    slow: dict[int, float] = field(default_factory=dict)
    """How many times longer the steps of an engine take."""

    def __post_init__(self) -> None:
        trace = self.trace
        zeros = np.zeros(len(trace.arrival), np.int64)
        self.requests = new_requests(
            trace.arrival, trace.prompt, trace.answer, zeros, trace.first_block, trace.blocks
        )
        limits = self.hardware.limits_array
        limits[CACHED_BLOCKS] = self.cached_blocks
        self.limits = limits
        self.fleet = new_fleet(self.replicas, int(limits[0]), trace.different_blocks)
        self.steps = np.tile(self.hardware.step_array, (self.replicas, 1))
        for engine, factor in self.slow.items():
            self.steps[engine, :NOISE] *= factor

    def run(self, policy: Policy) -> "Service":
        seed_noise(1)
        requests, fleet = self.requests, self.fleet
        for request, now in enumerate(self.trace.arrival):
            self.advance(now)
            engine = policy.choose(self, request, now)
            enqueue(requests, fleet, engine, request)
        self.advance(self.trace.arrival[-1] + 30)
        return self

    def advance(self, until: float) -> None:
        _run_all(self.requests, self.fleet, until, self.steps, self.limits, SLO)

    @property
    def ttft(self) -> Array:
        """Seconds until the first token; infinite where none has come."""
        first = self.requests.first_token
        return np.where(first >= 0, first - self.trace.arrival, np.inf)

    @property
    def attainment_percent(self) -> float:
        return 100 * float(np.mean(self.ttft <= SLO[0]))

    @property
    def saved_percent(self) -> float:
        return 100 * float(self.requests.cached.sum() / self.trace.prompt.sum())

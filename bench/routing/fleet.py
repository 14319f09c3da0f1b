"""Simulates a fleet of engines whose requests are routed one by one."""

from dataclasses import dataclass, field

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

TICK_SECONDS = 0.02
"""Time in seconds between two attempts to release the requests that a policy holds."""

AFTER_SECONDS = 30.0
"""Time in seconds for which the engines run after the last arrival."""


@njit(cache=True)
def _run_all(
    requests: Requests, fleet: Fleet, until: float, steps: Array, limits: Array, slo: Array
) -> None:
    for engine in range(len(steps)):
        run_engine(requests, fleet, engine, until, steps[engine], limits, slo)


class Policy:
    """Routes the requests of a service."""

    @property
    def held(self) -> int:
        """Number of requests that wait for an engine."""
        return 0

    def choose(self, view: "Service", request: int, now: float) -> int | None:
        """Return the engine for a request that arrives now; None to hold the request."""
        raise NotImplementedError

    def release(self, view: "Service", now: float) -> list[tuple[int, int]]:
        """Return the held requests that are sent now, each with its engine."""
        return []


@dataclass
class Service:
    """One service with a fixed number of replicas."""

    trace: Trace
    hardware: Hardware
    replicas: int
    cached_blocks: int
    slow: dict[int, float] = field(default_factory=dict)
    """Mapping from a slow engine to the factor by which its steps take longer."""
    ready_at: dict[int, float] = field(default_factory=dict)
    """Mapping from an engine that does not serve from the beginning to the time in seconds at which
    it begins."""

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
        clock = 0.0
        for request, now in enumerate(self.trace.arrival):
            clock = self._release(policy, clock, now)
            self.advance(now)
            engine = policy.choose(self, request, now)
            if engine is not None:
                enqueue(requests, fleet, engine, request)
        end = self.trace.arrival[-1] + AFTER_SECONDS
        self._release(policy, clock, end)
        self.advance(end)
        return self

    def _release(self, policy: Policy, clock: float, until: float) -> float:
        """Send the requests that the policy releases up to a time. Return that time."""
        while policy.held and clock + TICK_SECONDS < until:
            clock += TICK_SECONDS
            self.advance(clock)
            for request, engine in policy.release(self, clock):
                enqueue(self.requests, self.fleet, engine, request)
        return until

    def advance(self, until: float) -> None:
        _run_all(self.requests, self.fleet, until, self.steps, self.limits, SLO)

    def absent(self, now: float) -> Array:
        """Return, for each engine, whether it does not serve yet."""
        at = np.zeros(self.replicas)
        for engine, ready in self.ready_at.items():
            at[engine] = ready
        absent: Array = at > now
        return absent

    @property
    def ttft(self) -> Array:
        """Seconds until each request's first token. Infinite for a request that got none."""
        first = self.requests.first_token
        return np.where(first >= 0, first - self.trace.arrival, np.inf)

    @property
    def is_in_time(self) -> Array:
        """Whether each request got its first token in time."""
        in_time: Array = self.ttft <= SLO[0]
        return in_time

    @property
    def attainment_percent(self) -> float:
        return 100 * float(np.mean(self.is_in_time))

    @property
    def saved_percent(self) -> float:
        return 100 * float(self.requests.cached.sum() / self.trace.prompt.sum())

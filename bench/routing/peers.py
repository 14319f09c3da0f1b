"""Implements the policies of other routers from their documented rules, and the bound.

Unlike real routers, these policies see the true state and the true cache of every engine.
"""

import bisect
import hashlib
from dataclasses import dataclass, field

import numpy as np
from numba import njit

from routing.fleet import Policy, Service
from routing.foresight import first_token_at
from scaling.engine import (
    FIXED,
    KV,
    MAX_STEP_TOKENS,
    PREFILL,
    SEQUENCE,
    Array,
    Fleet,
    Requests,
    matched_tokens,
)

ABSENT = 1 << 40
"""Load of an engine that does not serve yet."""


def _loads(view: Service, now: float) -> Array:
    return np.where(view.absent(now), ABSENT, view.fleet.running + view.fleet.waiting)


@njit(cache=True)
def _matches(requests: Requests, fleet: Fleet, engines: int, request: int) -> Array:
    found = np.zeros(engines, np.int64)
    for engine in range(engines):
        found[engine] = matched_tokens(requests, fleet, engine, request, True)
    return found


@njit(cache=True)
def _first_tokens(
    requests: Requests, fleet: Fleet, request: int, steps: Array, limits: Array
) -> Array:
    found = np.zeros(len(steps))
    for engine in range(len(steps)):
        found[engine] = first_token_at(requests, fleet, engine, request, steps[engine], limits)
    return found


@njit(cache=True)
def _queued_tokens(requests: Requests, fleet: Fleet, engines: int) -> Array:
    found = np.zeros(engines, np.int64)
    for engine in range(engines):
        at = fleet.head[engine]
        while at >= 0:
            found[engine] += requests.to_compute[at]
            at = requests.behind[at]
    return found


@dataclass
class Bound(Policy):
    """Chooses the engine with the least cost, by perfect foresight.

    The cost is the sum of the time until the first token, `work_weight` times the time that the
    engine needs for the prompt, and `decode_weight` times the delay of all other answers by this
    answer.
    """

    work_weight: float = 0.0
    decode_weight: float = 0.0

    def choose(self, view: Service, request: int, now: float) -> int:
        requests, steps = view.requests, view.steps
        seconds = _first_tokens(requests, view.fleet, request, steps, view.limits) - now
        saved = _matches(requests, view.fleet, view.replicas, request)
        a_token = steps[:, PREFILL] + steps[:, FIXED] / view.limits[MAX_STEP_TOKENS]
        prompt, loads = requests.prompt[request], _loads(view, now)
        delay = requests.answer[request] * (steps[:, SEQUENCE] + steps[:, KV] * prompt) * loads
        cost = seconds + self.work_weight * (prompt - saved) * a_token + self.decode_weight * delay
        return int(np.lexsort((loads, cost))[0])


@dataclass
class LeastRequests(Policy):
    """Chooses the engine with the fewest requests; among equals, the next in turn."""

    turn: int = 0

    def choose(self, view: Service, request: int, now: float) -> int:
        self.turn += 1
        loads = np.roll(_loads(view, now), -self.turn % view.replicas)
        return int((np.argmin(loads) + self.turn) % view.replicas)


class LeastWork(Policy):
    """Chooses the engine with the fewest prompt tokens in its queue, and knows no prefixes."""

    def choose(self, view: Service, request: int, now: float) -> int:
        tokens = _queued_tokens(view.requests, view.fleet, view.replicas)
        return int(np.lexsort((_loads(view, now), tokens + ABSENT * view.absent(now)))[0])


def _limit(loads: Array, factor: float) -> float:
    present = loads[loads < ABSENT]
    return max(1.0, factor * (float(present.sum()) + 1) / len(present))


@dataclass
class BoundedHash(Policy):
    """Chooses by consistent hashing of a prompt's first blocks, with bounded loads."""

    blocks: int = 4
    factor: float = 1.25
    points: list[tuple[int, int]] = field(default_factory=list)

    def choose(self, view: Service, request: int, now: float) -> int:
        if not self.points:
            self.points = sorted(
                (_hash(f"{engine}-{i}"), engine)
                for engine in range(view.replicas)
                for i in range(200)
            )
        first = view.requests.first_block[request]
        end = min(first + self.blocks, view.requests.first_block[request + 1])
        at = bisect.bisect(self.points, (_hash(str(view.requests.blocks[first:end].tolist())), -1))
        loads = _loads(view, now)
        limit = _limit(loads, self.factor)
        for step in range(len(self.points)):
            engine = self.points[(at + step) % len(self.points)][1]
            if loads[engine] + 1 <= limit:
                return engine
        return int(np.argmin(loads))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@dataclass
class PrefixTree(Policy):
    """Chooses the engine with the longest cached prefix among the engines below a limit of the
    load.
    """

    factor: float = 1.25
    fallback: LeastRequests = field(default_factory=LeastRequests)

    def choose(self, view: Service, request: int, now: float) -> int:
        loads = _loads(view, now)
        matches = _matches(view.requests, view.fleet, view.replicas, request)
        matches = np.where(loads + 1 <= _limit(loads, self.factor), matches, -1)
        if matches.max() <= 0:
            return self.fallback.choose(view, request, now)
        best = np.flatnonzero(matches == matches.max())
        return int(best[np.argmin(loads[best])])

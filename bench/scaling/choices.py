"""Chooses the engine of a request, by one of several routings.

A routing sees the true state of every engine at that moment. Real proxies know less, so each figure
is the best that its routing can give. The prefix cache saves the same tokens of a request on every
engine, so no routing chooses by prefixes here (bench/routing compares that).
"""

from enum import StrEnum
from math import inf
from typing import NamedTuple

import numpy as np
from numba import njit

from llmservice_operator.routing.holding import LONG_PROMPT
from llmservice_operator.routing.router import DECODE_WEIGHT, DEFAULT_TTFT_SECONDS
from scaling.engine import (
    FIXED,
    KV,
    KV_CAPACITY,
    MAX_SEQUENCES,
    MAX_STEP_TOKENS,
    PREFILL,
    SEQUENCE,
    Array,
    Fleet,
    Requests,
)


class Routing(StrEnum):
    """Rule by which a request gets its engine."""

    RANDOM = "random"
    """Any engine. A plain Service does this for each connection. Here, each request has its own
    connection, which spreads the requests best."""
    BETTER_OF_TWO = "better-of-two"
    """The engine with fewer requests, of two random ones."""
    LEAST_REQUESTS = "least-requests"
    """The engine with the fewest requests."""
    LEAST_PROMPT_TOKENS = "least-prompt-tokens"
    """The engine with the fewest prompt tokens that are still to be computed."""
    LEAST_TOKENS = "least-tokens"
    """The engine with the fewest tokens: those of the prompts to be computed, and those that the KV
    cache holds or will hold."""
    FLOW_CONTROL = "flow-control"
    """The engine with the best score of its queue and its KV usage. While the engines are saturated
    on average, requests wait outside them in order of arrival."""
    ROUTER = "router"
    """The product's router: the engine with the least cost in seconds. A request that would be late
    waits in the router while others pass it. In contrast to the product, the router knows the
    number of tokens of each prompt and the true step model, never refuses a request because too
    many wait, and never ends a wait. There is one API key."""


RANDOM, BETTER_OF_TWO, FEWEST_REQUESTS, PROMPT_TOKENS, TOKENS, FLOW_CONTROL, ROUTER = range(
    len(Routing)
)
"""The routings in the order of `Routing`, for compiled code."""

QUEUE_LIMIT, KV_LIMIT = 5.0, 0.8
"""Queued requests, and share of the KV tokens in use, at which llm-d's flow control takes an engine
as saturated. These are its defaults."""

HEAD, TAIL, HELD, PASSED, BEGUN = range(5)
TICK, SINCE = range(2)


class Router(NamedTuple):
    """A routing, with the requests that wait outside the engines."""

    kind: int
    queue: Array
    """First and last waiting request, their number, the consecutive dispatches that passed the
    first one, and the number of requests that have begun to wait."""
    clock: Array
    """Time in seconds of the last attempt to send waiting requests, and of the last end of
    `run_until`."""
    answers: Array
    """Mean length of an answer in tokens, and mean number of tokens that a running sequence still
    generates. The product learns both."""

    @property
    def held(self) -> int:
        """Number of requests that wait outside the engines."""
        return int(self.queue[HELD])

    @property
    def begun(self) -> int:
        """Number of requests that have begun to wait. Those that had to wait before, because there
        was no engine, do not count again.
        """
        return int(self.queue[BEGUN])


def new_router(routing: Routing, answers: Array) -> Router:
    """Return a router in which no request waits. `answers` are the lengths of the answers."""
    mean = float(np.mean(answers))
    left = float(np.mean(np.square(answers, dtype=np.float64))) / mean / 2
    return Router(
        tuple(Routing).index(routing),
        np.array([-1, -1, 0, 0, 0], np.int64),
        np.zeros(2),
        np.array([mean, left]),
    )


@njit(cache=True)
def routable(fleet: Fleet, active: Array) -> int:
    count = 0
    for i in range(len(active)):
        count += fleet.routable[active[i]] != 0
    return count


@njit(cache=True)
def _nth(fleet: Fleet, active: Array, number: int) -> int:
    """Return a routable engine by its number."""
    for i in range(len(active)):
        if fleet.routable[active[i]]:
            if number == 0:
                return int(active[i])
            number -= 1
    return -1


@njit(cache=True)
def _any(fleet: Fleet, active: Array, choices: int) -> int:
    """Return the engine with the fewest requests among one or two random engines."""
    count = routable(fleet, active)
    first = np.random.randint(count)
    engine = _nth(fleet, active, first)
    if choices == 1 or count == 1:
        return engine
    second = np.random.randint(count - 1)
    other = _nth(fleet, active, second + (second >= first))
    load = fleet.running[engine] + fleet.waiting[engine]
    return other if fleet.running[other] + fleet.waiting[other] < load else engine


@njit(cache=True)
def _load(fleet: Fleet, engine: int, kind: int) -> int:
    if kind == PROMPT_TOKENS:
        return int(fleet.to_compute[engine])
    if kind == TOKENS:
        # A queued prompt is still to be computed, and will then be in the KV cache.
        return int(2 * fleet.to_compute[engine] + fleet.kv_used[engine])
    return int(fleet.running[engine] + fleet.waiting[engine])


@njit(cache=True)
def _least(fleet: Fleet, active: Array, kind: int, begin: int) -> int:
    """Return the engine with the least load; among equals, the first one from `begin` on."""
    best, least = -1, 1 << 60
    for i in range(len(active)):
        engine = active[(i + begin) % len(active)]
        if fleet.routable[engine]:
            load = _load(fleet, engine, kind)
            if load < least:
                best, least = engine, load
    return best


@njit(cache=True)
def _queued(fleet: Fleet, engine: int) -> int:
    return int(fleet.waiting[engine] - fleet.head_admitted[engine])


@njit(cache=True)
def is_saturated(fleet: Fleet, active: Array, capacity: float) -> bool:
    total, count = 0.0, 0
    for i in range(len(active)):
        engine = active[i]
        if fleet.routable[engine]:
            used = fleet.kv_used[engine] / capacity
            total += max(_queued(fleet, engine) / QUEUE_LIMIT, used / KV_LIMIT)
            count += 1
    return total >= count


@njit(cache=True)
def best_score(fleet: Fleet, active: Array, capacity: float) -> int:
    """Return the engine with the best sum of two equal scores: one of the queues, from 1 for the
    shortest to 0 for the longest, and the free share of the KV tokens.
    """
    shortest, longest = 1 << 60, 0
    for i in range(len(active)):
        if fleet.routable[active[i]]:
            queued = _queued(fleet, active[i])
            shortest, longest = min(shortest, queued), max(longest, queued)
    begin = np.random.randint(len(active))
    best, most = -1, -inf
    for i in range(len(active)):
        engine = active[(i + begin) % len(active)]
        if fleet.routable[engine]:
            by_queue = 1.0
            if longest > shortest:
                by_queue = (longest - _queued(fleet, engine)) / (longest - shortest)
            score = by_queue - fleet.kv_used[engine] / capacity
            if score > most:
                best, most = engine, score
    return best


@njit(cache=True)
def wait_of(
    fleet: Fleet, engine: int, uncached: float, now: float, step: Array, limits: Array, left: float
) -> tuple[float, float]:
    """Return the seconds until an engine begins with a new prompt, and until its first token, as
    the product's router estimates them.

    `left` is the number of tokens that a running sequence still generates on average.
    """
    ahead = fleet.waiting[engine]
    decoding = fleet.running[engine] + ahead / 2
    to_compute = fleet.to_compute[engine]
    read = fleet.kv_read[engine] + to_compute / 2
    budget = max(1.0, limits[MAX_STEP_TOKENS] - decoding)
    empty = step[FIXED] + step[SEQUENCE] * decoding + step[KV] * read
    full = empty + step[PREFILL] * budget
    tokens = to_compute + uncached
    steps = tokens // budget
    rest = tokens - steps * budget
    computed = steps * full
    if rest > 0:
        computed += empty + step[PREFILL] * rest
    running = fleet.running[engine]
    admitted = 0.0
    if running > 0:
        held = fleet.kv_used[engine]
        for_slots = running + ahead + 1 - limits[MAX_SEQUENCES]
        for_memory = (held + tokens - limits[KV_CAPACITY]) / max(held / running, 1.0)
        ends = min(max(for_slots, for_memory, 0.0), running)
        admitted = ends * left * empty / running
    # The tokens of the step in progress are counted as computed already.
    present = fleet.clock[engine] - now
    if not 0 < present < inf:
        present = 0.0
    start = max(to_compute * full / budget, admitted)
    return present + start, present + max(computed, admitted + uncached * full / budget)


@njit(cache=True)
def cheapest(
    requests: Requests,
    fleet: Fleet,
    router: Router,
    active: Array,
    request: int,
    now: float,
    most_wait: float,
    step: Array,
    limits: Array,
) -> tuple[int, float, float]:
    """Return the engine with the least cost, and the seconds until it begins with the prompt and
    until the first token. The engine is -1 if none would begin within `most_wait` seconds.
    """
    answer, left = router.answers[0], router.answers[1]
    uncached = float(requests.to_compute[request])
    delay = answer * (step[SEQUENCE] + step[KV] * requests.prompt[request])
    best, least, fewest, begins, first = -1, inf, 1 << 60, inf, inf
    for i in range(len(active)):
        engine = active[i]
        if not fleet.routable[engine]:
            continue
        start, token = wait_of(fleet, engine, uncached, now, step, limits, left)
        if start > most_wait:
            continue
        load = fleet.running[engine] + fleet.waiting[engine]
        cost = token + DECODE_WEIGHT * delay * load
        if cost < least or (cost == least and load < fewest):
            best, least, fewest, begins, first = engine, cost, load, start, token
    return best, begins, first


@njit(cache=True)
def _is_late(
    requests: Requests, request: int, first_token: float, step: Array, limits: Array, slo: Array
) -> bool:
    limit = slo[0] if slo[0] < inf else DEFAULT_TTFT_SECONDS
    a_token = step[PREFILL] + step[FIXED] / limits[MAX_STEP_TOKENS]
    prompt = requests.to_compute[request] * a_token
    return bool(first_token > max(limit, prompt + LONG_PROMPT * limit))


@njit(cache=True)
def choose(
    requests: Requests,
    fleet: Fleet,
    router: Router,
    active: Array,
    request: int,
    now: float,
    step: Array,
    limits: Array,
    slo: Array,
) -> int:
    """Return the engine for a request that arrives now. -1 if it waits outside the engines."""
    kind, queue = router.kind, router.queue
    if kind == RANDOM:
        return _any(fleet, active, 1)
    if kind == BETTER_OF_TWO:
        return _any(fleet, active, 2)
    if kind == FLOW_CONTROL:
        if queue[HELD] > 0 or is_saturated(fleet, active, limits[KV_CAPACITY]):
            return -1
        return best_score(fleet, active, limits[KV_CAPACITY])
    if kind == ROUTER:
        found = cheapest(requests, fleet, router, active, request, now, inf, step, limits)
        if _is_late(requests, request, found[2], step, limits, slo):
            return -1
        queue[PASSED] += queue[HELD] > 0
        return found[0]
    begin = request if kind == FEWEST_REQUESTS else np.random.randint(len(active))
    return _least(fleet, active, kind, begin)

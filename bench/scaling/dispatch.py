"""Sends the requests of a service to its engines, and holds those that its routing lets wait."""

from math import inf

from numba import njit

from llmservice_operator.routing.holding import CANDIDATES, FREE_SECONDS, HELD_TURN
from scaling.choices import (
    BEGUN,
    HEAD,
    HELD,
    PASSED,
    ROUTER,
    SINCE,
    TAIL,
    TICK,
    Router,
    best_score,
    cheapest,
    choose,
    is_saturated,
    routable,
    wait_of,
)
from scaling.engine import KV_CAPACITY, Array, Fleet, Requests, enqueue, run_engine

TICK_SECONDS = 0.02
"""Time in seconds between two attempts to send the requests that wait outside the engines."""


@njit(cache=True)
def _hold(requests: Requests, router: Router, request: int) -> None:
    queue = router.queue
    if queue[HELD] == 0:
        queue[HEAD] = request
    else:
        requests.behind[queue[TAIL]] = request
    queue[TAIL] = request
    queue[HELD] += 1
    queue[BEGUN] += requests.arrival[request] >= router.clock[SINCE]


@njit(cache=True)
def _send(
    requests: Requests, fleet: Fleet, router: Router, before: int, request: int, engine: int
) -> None:
    """Send a waiting request. `before` is the waiting request in front of it, -1 for the first."""
    queue = router.queue
    after = requests.behind[request]
    if before < 0:
        queue[HEAD] = after
        queue[PASSED] = 0
    else:
        requests.behind[before] = after
        queue[PASSED] += 1
    if queue[TAIL] == request:
        queue[TAIL] = before
    queue[HELD] -= 1
    requests.behind[request] = -1
    enqueue(requests, fleet, engine, request)


@njit(cache=True)
def _release_one(
    requests: Requests,
    fleet: Fleet,
    router: Router,
    active: Array,
    now: float,
    step: Array,
    limits: Array,
) -> bool:
    """Send the waiting request that the product's router would send now. Return whether there is
    one.
    """
    queue, left = router.queue, router.answers[1]
    first = queue[HEAD]
    most_wait = inf
    if queue[PASSED] < HELD_TURN:
        is_free = False
        for i in range(len(active)):
            if fleet.routable[active[i]] and not is_free:
                is_free = wait_of(fleet, active[i], 1.0, now, step, limits, left)[0] <= FREE_SECONDS
        if not is_free:
            return False
        before, request = -1, first
        for _ in range(min(CANDIDATES, queue[HELD])):
            found = cheapest(requests, fleet, router, active, request, now, inf, step, limits)
            if found[1] <= FREE_SECONDS:
                _send(requests, fleet, router, before, request, found[0])
                return True
            before, request = request, requests.behind[request]
        most_wait = FREE_SECONDS
    engine = cheapest(requests, fleet, router, active, first, now, most_wait, step, limits)[0]
    if engine >= 0:
        _send(requests, fleet, router, -1, first, engine)
    return engine >= 0


@njit(cache=True)
def _run_routable(
    requests: Requests,
    fleet: Fleet,
    active: Array,
    begin: int,
    until: float,
    step: Array,
    limits: Array,
    slo: Array,
) -> None:
    for i in range(len(active)):
        engine = active[(i + begin) % len(active)]
        if fleet.routable[engine]:
            run_engine(requests, fleet, engine, until, step, limits, slo)


@njit(cache=True)
def _release(
    requests: Requests,
    fleet: Fleet,
    router: Router,
    active: Array,
    until: float,
    step: Array,
    limits: Array,
    slo: Array,
) -> None:
    """Send the requests that stop to wait before a time."""
    queue, clock, capacity = router.queue, router.clock, limits[KV_CAPACITY]
    while queue[HELD] > 0 and clock[TICK] + TICK_SECONDS < until:
        clock[TICK] += TICK_SECONDS
        now = clock[TICK]
        _run_routable(requests, fleet, active, 0, now, step, limits, slo)
        if router.kind == ROUTER:
            while queue[HELD] > 0:
                if not _release_one(requests, fleet, router, active, now, step, limits):
                    break
        else:
            while queue[HELD] > 0 and not is_saturated(fleet, active, capacity):
                engine = best_score(fleet, active, capacity)
                _send(requests, fleet, router, -1, queue[HEAD], engine)
    clock[TICK] = until


@njit(cache=True)
def run_until(
    requests: Requests,
    fleet: Fleet,
    router: Router,
    active: Array,
    first: int,
    until: float,
    step: Array,
    limits: Array,
    slo: Array,
) -> int:
    """Run the engines until a time. Return the number of the first request that is not yet routed.

    `active` lists the engines that exist. While none of them is routable, no request is routed.
    """
    request = first
    if routable(fleet, active) > 0:
        while request < len(requests.arrival) and requests.arrival[request] < until:
            now = max(requests.arrival[request], router.clock[SINCE])
            _release(requests, fleet, router, active, now, step, limits, slo)
            _run_routable(requests, fleet, active, request, now, step, limits, slo)
            engine = choose(requests, fleet, router, active, request, now, step, limits, slo)
            if engine < 0:
                _hold(requests, router, request)
            else:
                enqueue(requests, fleet, engine, request)
            request += 1
        _release(requests, fleet, router, active, until, step, limits, slo)
    for i in range(len(active)):
        run_engine(requests, fleet, active[i], until, step, limits, slo)
    router.clock[TICK] = router.clock[SINCE] = until
    return request

"""Computes when an engine would give a request its first token, with complete knowledge.

No real router can have this knowledge. Policies that have it are part of the benchmark's bound.
"""

import numpy as np
from numba import njit

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
    matched_tokens,
)

MOST_STEPS = 200_000
"""Maximum number of steps, so that the loop ends. No queue of the bench takes so many."""


@njit(cache=True)
def first_token_at(
    requests: Requests, fleet: Fleet, engine: int, request: int, step: Array, limits: Array
) -> float:
    """Return the time in seconds of the request's first token, if no further request arrives.

    Steps take their modelled duration, without noise, and no sequence is preempted.
    """
    most = limits[MAX_SEQUENCES]
    left = np.zeros(most, np.int64)
    held = np.zeros(most, np.int64)
    charged = np.zeros(most, np.int64)
    running = fleet.running[engine]
    for i in range(running):
        each = fleet.sequences[engine, i]
        left[i] = requests.answer[each] - requests.generated[each]
        held[i] = requests.prompt[each] + requests.generated[each]
        charged[i] = held[i] - requests.shared[each]
    clock = fleet.clock[engine]
    kv_used, kv_read = fleet.kv_used[engine], fleet.kv_read[engine]
    at = fleet.head[engine]
    is_admitted = fleet.head_admitted[engine] == 1
    own = requests.prompt[request] - matched_tokens(requests, fleet, engine, request, True)
    todo = requests.to_compute[at] if at >= 0 else own
    charge = todo
    if is_admitted:
        charge = requests.prompt[at] + requests.generated[at] - requests.shared[at]
    for _ in range(MOST_STEPS):
        decoding, started, computed = running, running, 0
        budget = max(limits[MAX_STEP_TOKENS] - decoding, 1)
        is_done = False
        while budget > 0:
            now = at if at >= 0 else request
            size = requests.prompt[now] + requests.generated[now]
            if not is_admitted:
                full = kv_used + todo + decoding > limits[KV_CAPACITY]
                if started >= most or (full and started > 0):
                    break
                charge = todo
                kv_used += charge
                is_admitted = True
            chunk = min(budget, todo)
            todo -= chunk
            budget -= chunk
            computed += chunk
            if todo > 0:
                break
            if at < 0:
                is_done = True
                break
            left[started] = requests.answer[now] - requests.generated[now]
            held[started] = size
            charged[started] = charge
            started += 1
            is_admitted = False
            at = requests.behind[at]
            todo = requests.to_compute[at] if at >= 0 else own
        clock += (
            step[FIXED] + step[PREFILL] * computed + step[SEQUENCE] * decoding + step[KV] * kv_read
        )
        if is_done:
            return float(clock)
        kv_used += started
        running = started
        for i in range(decoding, started):
            kv_read += held[i]
        kv_read += started
        i = 0
        while i < running:
            left[i] -= 1
            held[i] += 1
            charged[i] += 1
            if left[i] <= 0:
                kv_used -= charged[i]
                kv_read -= held[i]
                running -= 1
                left[i], held[i], charged[i] = left[running], held[running], charged[running]
                # The moved sequence was not yet advanced, so the same place is looked at again.
                continue
            i += 1
    return float(clock)

"""Simulates a fleet of continuous-batching engines step by step. It is the simulator's inner loop.

Each engine follows the rules of vLLM's scheduler. Running sequences decode first. The rest of the
step's token budget goes to prompts in order of arrival (chunked prefill). A prompt is admitted when
a slot and its KV tokens are free. When KV tokens run out, the youngest sequence is preempted and
computed again later.

Each request states either how many of its prompt tokens the prefix cache holds, or the blocks of
its prompt. In the second case, each engine has a cache of blocks, and evicts the least recently
used ones.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from llmservice_operator.api.calibration import LENGTH_BUCKETS
from llmservice_operator.scaling.signals import STEP_MOMENTS

FIXED, PREFILL, SEQUENCE, KV, NOISE = range(5)
MAX_SEQUENCES, KV_CAPACITY, MAX_STEP_TOKENS, CACHED_BLOCKS = range(4)
BLOCK_TOKENS = 512
"""Prompt tokens of a cache block, as in the Mooncake traces."""
ARRIVALS, PROMPT_ARRIVED, COMPUTED, CACHED, GENERATED, FINISHED, TTFT_MET, ITL_MET, SLO_MET = range(
    9
)
ANSWER_TOKENS, BUSY_SECONDS, PREEMPTIONS = 9, 10, 11
TOTALS = 12
COUNTED = (
    "arrivals",
    "prompt_tokens_arrived",
    "prompt_tokens_computed",
    "prompt_tokens_cached",
    "generated_tokens",
    "finished",
    "ttft_met",
    "itl_met",
    "slo_met",
    "answer_tokens",
)
"""Counter names of the totals that a model server reports, in the order of the totals."""
MOMENTS = STEP_MOMENTS
BUCKETS = LENGTH_BUCKETS

Array = np.ndarray[Any, Any]


class Requests(NamedTuple):
    """One row per request, in order of arrival."""

    arrival: Array
    prompt: Array
    cached: Array
    """Prompt tokens that the prefix cache holds. For a request with blocks, they are known only
    after its admission."""
    answer: Array
    first_token: Array
    """Time of the first token in seconds. Negative until there is one."""
    finish: Array
    to_compute: Array
    """Prompt tokens (and, after a preemption, answer tokens) still to be computed. For a waiting
    request with blocks, this is the expected number."""
    generated: Array
    behind: Array
    """Number of the next request in the same queue. -1 if there is none."""
    shared: Array
    """Number of a running request's prompt tokens that reuse the KV cache of cached blocks."""
    first_block: Array
    """Position of each request's first block in `blocks`. One more entry contains the end of the
    last request's blocks."""
    blocks: Array
    """Blocks of all prompts, numbered from 1. Equal blocks have equal prefixes."""


class Fleet(NamedTuple):
    """One row per engine."""

    clock: Array
    routable: Array
    waiting: Array
    head: Array
    tail: Array
    head_admitted: Array
    running: Array
    sequences: Array
    """Running sequences of each engine, as request numbers, the youngest last."""
    kv_used: Array
    kv_read: Array
    """KV tokens of the decoding sequences, which one step reads."""
    to_compute: Array
    """Sum of `Requests.to_compute` of the requests in each queue."""
    totals: Array
    prompt_lengths: Array
    answer_lengths: Array
    moments: Array
    newer: Array
    """For each cached block, the block that was used next after it; -1 for a block that is not
    cached. Entry 0 closes the ring: it contains the least recently used block."""
    older: Array
    cached_blocks: Array
    queued: Array
    """Number of queued requests that contain each block."""


def new_requests(
    arrival: Array,
    prompt: Array,
    answer: Array,
    cached: Array,
    first_block: Array | None = None,
    blocks: Array | None = None,
) -> Requests:
    count = len(arrival)
    return Requests(
        arrival,
        prompt,
        cached,
        answer,
        np.full(count, -1.0),
        np.full(count, -1.0),
        (prompt - cached).astype(np.int64),
        np.zeros(count, np.int64),
        np.full(count, -1, np.int64),
        np.zeros(count, np.int64),
        np.zeros(count + 1, np.int64) if first_block is None else first_block,
        np.zeros(0, np.int64) if blocks is None else blocks,
    )


def new_fleet(engines: int, max_sequences: int, blocks: int = 0) -> Fleet:
    """Return idle engines with empty caches for blocks with the numbers 1 to `blocks`."""
    newer = np.full((engines, blocks + 1), -1, np.int32)
    newer[:, 0] = 0
    return Fleet(
        np.zeros(engines),
        np.zeros(engines, np.int64),
        np.zeros(engines, np.int64),
        np.full(engines, -1, np.int64),
        np.full(engines, -1, np.int64),
        np.zeros(engines, np.int64),
        np.zeros(engines, np.int64),
        np.zeros((engines, max_sequences), np.int64),
        np.zeros(engines, np.int64),
        np.zeros(engines, np.int64),
        np.zeros(engines, np.int64),
        np.zeros((engines, TOTALS)),
        np.zeros((engines, BUCKETS)),
        np.zeros((engines, BUCKETS)),
        np.zeros((engines, MOMENTS)),
        newer,
        newer.copy(),
        np.zeros(engines, np.int64),
        np.zeros((engines, blocks + 1), np.int16),
    )


@njit(cache=True)
def seed_noise(seed: int) -> None:
    np.random.seed(seed)


@njit(cache=True)
def _bucket(tokens: int) -> int:
    bucket = 0
    rest = max(tokens, 1) - 1
    while rest > 0:
        rest >>= 1
        bucket += 1
    return min(bucket, BUCKETS - 1)


@njit(cache=True)
def matched_tokens(
    requests: Requests, fleet: Fleet, engine: int, request: int, with_queue: bool
) -> int:
    """Return the number of prompt tokens that a request need not compute, because an engine caches
    them.

    If `with_queue` is true, the blocks of the engine's waiting requests count as cached.
    """
    first, end = requests.first_block[request], requests.first_block[request + 1]
    at = first
    while at < end:
        block = requests.blocks[at]
        queued = with_queue and fleet.queued[engine, block] > 0
        if fleet.newer[engine, block] < 0 and not queued:
            break
        at += 1
    return int(max(0, min((at - first) * BLOCK_TOKENS, requests.prompt[request] - 1)))


@njit(cache=True)
def _use_blocks(requests: Requests, fleet: Fleet, engine: int, request: int, capacity: int) -> None:
    """Mark the blocks of a request as the most recently used ones. The first block is marked last,
    because vLLM evicts the end of a prompt before its beginning.
    """
    newer, older = fleet.newer[engine], fleet.older[engine]
    first, end = requests.first_block[request], requests.first_block[request + 1]
    for at in range(end - 1, first - 1, -1):
        block = requests.blocks[at]
        if newer[block] >= 0:
            newer[older[block]] = newer[block]
            older[newer[block]] = older[block]
        else:
            fleet.cached_blocks[engine] += 1
        last = older[0]
        newer[last], older[block] = block, last
        newer[block], older[0] = 0, block
    while fleet.cached_blocks[engine] > capacity:
        oldest = newer[0]
        newer[0] = newer[oldest]
        older[newer[oldest]] = 0
        newer[oldest] = older[oldest] = -1
        fleet.cached_blocks[engine] -= 1


@njit(cache=True)
def _count_queued(requests: Requests, fleet: Fleet, engine: int, request: int, by: int) -> None:
    for at in range(requests.first_block[request], requests.first_block[request + 1]):
        fleet.queued[engine, requests.blocks[at]] += by


@njit(cache=True)
def enqueue(requests: Requests, fleet: Fleet, engine: int, request: int) -> None:
    """Add a request to the end of an engine's queue."""
    if requests.first_block[request] < requests.first_block[request + 1]:
        saved = matched_tokens(requests, fleet, engine, request, True)
        requests.to_compute[request] = requests.prompt[request] - saved
        _count_queued(requests, fleet, engine, request, 1)
    fleet.to_compute[engine] += requests.to_compute[request]
    if fleet.tail[engine] < 0:
        fleet.head[engine] = request
    else:
        requests.behind[fleet.tail[engine]] = request
    fleet.tail[engine] = request
    fleet.waiting[engine] += 1
    totals = fleet.totals[engine]
    totals[ARRIVALS] += 1
    totals[PROMPT_ARRIVED] += requests.prompt[request]
    totals[CACHED] += requests.cached[request]
    fleet.prompt_lengths[engine, _bucket(requests.prompt[request])] += 1


@njit(cache=True)
def _preempt(requests: Requests, fleet: Fleet, engine: int) -> None:
    """Preempt the youngest sequence.

    It frees its KV tokens and moves to the front of the queue, or to the second place if the prompt
    in front is already admitted.
    """
    fleet.running[engine] -= 1
    victim = fleet.sequences[engine, fleet.running[engine]]
    held = requests.prompt[victim] + requests.generated[victim]
    fleet.kv_used[engine] -= held - requests.shared[victim]
    fleet.kv_read[engine] -= held
    requests.to_compute[victim] = held
    fleet.to_compute[engine] += held
    _count_queued(requests, fleet, engine, victim, 1)
    if fleet.head_admitted[engine]:
        head = fleet.head[engine]
        requests.behind[victim] = requests.behind[head]
        requests.behind[head] = victim
        if fleet.tail[engine] == head:
            fleet.tail[engine] = victim
    else:
        requests.behind[victim] = fleet.head[engine]
        fleet.head[engine] = victim
        if fleet.tail[engine] < 0:
            fleet.tail[engine] = victim
    fleet.waiting[engine] += 1
    fleet.totals[engine, PREEMPTIONS] += 1


@njit(cache=True)
def _finish(requests: Requests, fleet: Fleet, engine: int, request: int, slo: Array) -> None:
    answer = requests.answer[request]
    requests.finish[request] = fleet.clock[engine]
    fleet.kv_used[engine] -= requests.prompt[request] + answer - requests.shared[request]
    totals = fleet.totals[engine]
    totals[FINISHED] += 1
    totals[ANSWER_TOKENS] += answer
    fleet.answer_lengths[engine, _bucket(answer)] += 1
    fast = requests.first_token[request] - requests.arrival[request] <= slo[0]
    decoding = requests.finish[request] - requests.first_token[request]
    smooth = decoding <= slo[1] * max(answer - 1, 1)
    totals[TTFT_MET] += fast
    totals[ITL_MET] += smooth
    totals[SLO_MET] += fast and smooth


@njit(cache=True)
def _step(
    requests: Requests, fleet: Fleet, engine: int, step: Array, limits: Array, slo: Array
) -> None:
    """Run one engine step."""
    capacity = limits[KV_CAPACITY]
    while fleet.kv_used[engine] + fleet.running[engine] > capacity and fleet.running[engine] > 1:
        _preempt(requests, fleet, engine)
    decoding = fleet.running[engine]
    read = fleet.kv_read[engine]
    budget = max(limits[MAX_STEP_TOKENS] - decoding, 1)
    computed = 0
    started = decoding
    while fleet.head[engine] >= 0 and budget > 0:
        request = fleet.head[engine]
        if not fleet.head_admitted[engine]:
            held = requests.prompt[request] + requests.generated[request]
            saved = matched_tokens(requests, fleet, engine, request, False)
            full = fleet.kv_used[engine] + held - saved + decoding > capacity
            if started >= limits[MAX_SEQUENCES] or (full and started > 0):
                break
            fleet.kv_used[engine] += held - saved
            fleet.head_admitted[engine] = 1
            if requests.first_block[request] < requests.first_block[request + 1]:
                requests.shared[request] = saved
                fleet.to_compute[engine] += held - saved - requests.to_compute[request]
                requests.to_compute[request] = held - saved
                if requests.cached[request] == 0:
                    requests.cached[request] = saved
                    fleet.totals[engine, CACHED] += saved
                _use_blocks(requests, fleet, engine, request, limits[CACHED_BLOCKS])
                _count_queued(requests, fleet, engine, request, -1)
        chunk = min(budget, requests.to_compute[request])
        requests.to_compute[request] -= chunk
        fleet.to_compute[engine] -= chunk
        budget -= chunk
        computed += chunk
        if requests.to_compute[request] > 0:
            break
        fleet.head[engine] = requests.behind[request]
        requests.behind[request] = -1
        if fleet.head[engine] < 0:
            fleet.tail[engine] = -1
        fleet.head_admitted[engine] = 0
        fleet.waiting[engine] -= 1
        fleet.sequences[engine, started] = request
        started += 1

    seconds = step[FIXED] + step[PREFILL] * computed + step[SEQUENCE] * decoding + step[KV] * read
    seconds *= max(0.5, 1 + step[NOISE] * np.random.standard_normal())
    fleet.clock[engine] += seconds

    terms = (1.0, float(computed), float(decoding), float(read), seconds)
    at = 0
    for i in range(5):
        for j in range(i, 5):
            fleet.moments[engine, at] += terms[i] * terms[j]
            at += 1
    totals = fleet.totals[engine]
    totals[COMPUTED] += computed
    totals[GENERATED] += started
    totals[BUSY_SECONDS] += seconds

    kept = 0
    fleet.kv_used[engine] += started
    for i in range(started):
        request = fleet.sequences[engine, i]
        requests.generated[request] += 1
        if i >= decoding:
            fleet.kv_read[engine] += requests.prompt[request] + requests.generated[request]
            if requests.first_token[request] < 0:
                requests.first_token[request] = fleet.clock[engine]
        else:
            fleet.kv_read[engine] += 1
        if requests.generated[request] >= requests.answer[request]:
            fleet.kv_read[engine] -= requests.prompt[request] + requests.generated[request]
            _finish(requests, fleet, engine, request, slo)
        else:
            fleet.sequences[engine, kept] = request
            kept += 1
    fleet.running[engine] = kept


@njit(cache=True)
def run_engine(
    requests: Requests,
    fleet: Fleet,
    engine: int,
    until: float,
    step: Array,
    limits: Array,
    slo: Array,
) -> None:
    while fleet.clock[engine] < until:
        if fleet.running[engine] == 0 and fleet.head[engine] < 0:
            fleet.clock[engine] = until
            return
        _step(requests, fleet, engine, step, limits, slo)

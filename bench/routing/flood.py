"""Measures how much a flood of requests from one API key delays the requests of the other keys."""

import numpy as np

from routing.fleet import Service
from routing.ours import Ours
from routing.traces import Trace
from scaling.engine import Array
from scaling.hardware import H100

REPLICAS, KEYS = 4, 4
REQUESTS_PER_SECOND = 5.0
"""Rate of each key. Together, the keys use about two fifths of the replicas' capacity."""
FLOOD = 10
"""Rate of the key that sends a flood, divided by its usual rate."""
SECONDS = 240.0
CACHED_BLOCKS = 820
PROMPT, ANSWER = 1500, 200
"""Mean lengths in tokens. No prompts share a prefix."""
SIGMA = 0.8
"""Parameter of the log-normal distribution of the lengths."""


def main() -> None:
    calm, flood = _requests(1), _requests(FLOOD)
    for name, trace, is_keyed in (
        ("no flood", calm, True),
        ("flood, keys take turns", flood, True),
        ("flood, no keys", flood, False),
    ):
        service = Service(trace, H100, REPLICAS, CACHED_BLOCKS).run(Ours(keyed=is_keyed))
        others = service.ttft[trace.client > 0]
        p50, p95, p99 = np.sort(others)[[int(share * len(others)) for share in (0.5, 0.95, 0.99)]]
        print(f"{name}: TTFT of the other keys p50 {p50:.2f} s, p95 {p95:.2f} s, p99 {p99:.2f} s")


def _requests(factor: float) -> Trace:
    """Return the requests of all keys. Those of the first key come `factor` times as often."""
    rng = np.random.default_rng(1)
    counts = [rng.poisson(REQUESTS_PER_SECOND * SECONDS) for _ in range(KEYS)]
    client = np.repeat(np.arange(KEYS), counts)
    arrival = rng.uniform(0, SECONDS, len(client))
    prompt, answer = _lengths(rng, PROMPT, len(client)), _lengths(rng, ANSWER, len(client))
    # The requests of the other keys are the same with and without the flood.
    more = rng.poisson((factor - 1) * REQUESTS_PER_SECOND * SECONDS)
    client = np.concatenate([client, np.zeros(more, np.int64)])
    arrival = np.concatenate([arrival, rng.uniform(0, SECONDS, more)])
    prompt = np.concatenate([prompt, _lengths(rng, PROMPT, more)])
    answer = np.concatenate([answer, _lengths(rng, ANSWER, more)])
    order = np.argsort(arrival)
    no_blocks = np.zeros(len(order) + 1, np.int64)
    return Trace(
        arrival[order],
        prompt[order],
        answer[order],
        no_blocks,
        np.zeros(0, np.int64),
        client[order],
    )


def _lengths(rng: np.random.Generator, mean: float, count: int) -> Array:
    drawn = rng.lognormal(np.log(mean) - SIGMA**2 / 2, SIGMA, count)
    lengths: Array = np.clip(drawn, 16, 30_000).astype(np.int64)
    return lengths


if __name__ == "__main__":
    main()

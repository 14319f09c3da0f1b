"""Continuous batching against waves and padded static batches, beside what theory says.

A wave is a batch whose next one starts when its last answer has ended; answers that end early free
their part of the computation. A padded static batch computes every answer to the length of its
longest one, and only the wanted tokens count.
"""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving import servers
from serving.load import Load, run
from serving.servers import Server

LONGEST = 200


@dataclass(frozen=True)
class Mix:
    """Lengths of answers, in tokens."""

    name: str
    draw: Callable[[random.Random], float]

    def lengths(self, count: int) -> list[int]:
        """Return so many lengths, the same ones every time."""
        chance = random.Random(1)
        return [max(1, min(LONGEST, round(self.draw(chance)))) for _ in range(count)]


MIXES = (
    Mix("exponential", lambda chance: chance.expovariate(1 / 50)),
    Mix("lognormal", lambda chance: chance.lognormvariate(3.4, 0.9)),
    Mix("bimodal", lambda chance: LONGEST if chance.random() < 0.2 else 12),
)


def rows(
    python: Path, model: Path, folder: Path, batch: int, count: int
) -> list[dict[str, object]]:
    """Measure every mix; return a row each."""
    with servers.ours(python, model, folder, [f"--max-num-seqs={batch}"]) as server:
        run(server, [16] * batch, concurrency=batch, stream=False)
        return [_row(server, mix, batch, count) for mix in MIXES]


def _row(server: Server, mix: Mix, batch: int, count: int) -> dict[str, object]:
    lengths = mix.lengths(count)
    waves = [lengths[start : start + batch] for start in range(0, count, batch)]
    useful, mean = sum(lengths), sum(lengths) / count
    continuous = _ask(server, lengths, count)
    waved = [_ask(server, wave, batch) for wave in waves]
    padded = [_ask(server, [max(wave)] * len(wave), batch) for wave in waves]
    waved_seconds, padded_seconds = (sum(load.seconds for load in x) for x in (waved, padded))
    latency = padded_seconds / len(waves)
    return {
        "mix": mix.name,
        "mean length": mean,
        "continuous tokens/s": useful / continuous.seconds,
        "against waves": waved_seconds / continuous.seconds,
        "against padded": padded_seconds / continuous.seconds,
        "bound L_max/L_mean": max(lengths) / mean,
        "bound by steps": sum(max(wave) for wave in waves) / _continuous_steps(lengths, batch),
        "padded tokens/s": useful / padded_seconds,
        "model B*L_mean/latency": batch * mean / latency,
    }


def _ask(server: Server, lengths: Sequence[int], concurrency: int) -> Load:
    return run(server, lengths, concurrency=concurrency, stream=False)


def _continuous_steps(lengths: Sequence[int], batch: int) -> int:
    """Return the steps of an engine that fills a place as soon as it is free."""
    busy_until = [0] * batch
    for length in lengths:
        heapq.heapreplace(busy_until, busy_until[0] + length)
    return max(busy_until)

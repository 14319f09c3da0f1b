"""Compares continuous batching with waves, with padded static batches, and with the theory's
prediction.

The requests of a wave start together. The next wave starts when all answers of the wave are
complete. An answer that is complete earlier needs no more computation. A padded static batch
computes every answer up to the length of the batch's longest answer, and only the requested tokens
count.
"""

import heapq
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving import servers
from serving.load import Load, run
from serving.report import Row
from serving.servers import Server

LONGEST = 200
BATCH = 16
MODEL_BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Mix:
    """Lengths of answers, in tokens."""

    name: str
    draw: Callable[[random.Random], float]

    def lengths(self, count: int) -> list[int]:
        """Return `count` lengths in tokens. They are the same in every call."""
        chance = random.Random(1)
        return [max(1, min(LONGEST, round(self.draw(chance)))) for _ in range(count)]


MIXES = (
    Mix("exponential", lambda chance: chance.expovariate(1 / 50)),
    Mix("lognormal", lambda chance: chance.lognormvariate(3.4, 0.9)),
    Mix("bimodal", lambda chance: LONGEST if chance.random() < 0.2 else 12),
)


@dataclass(frozen=True)
class Effort:
    """Size of each measurement."""

    requests: int = 128
    repeats: int = 3
    batches_of_model: int = 6
    """Size of one measurement of the throughput model, in batches of requests."""


def measure(python: Path, model: Path, folder: Path, effort: Effort) -> tuple[list[Row], list[Row]]:
    """Return the table of batching, and the table of the throughput model."""
    with servers.ours(python, model, folder, [f"--max-num-seqs={BATCH}"]) as server:
        run(server, [16] * BATCH, concurrency=BATCH, stream=False)
        batching = [_batching_row(server, mix, effort) for mix in MIXES]
        modelled = [
            _model_row(server, mix, batch, effort) for mix in MIXES for batch in MODEL_BATCHES
        ]
    return batching, modelled


def _batching_row(server: Server, mix: Mix, effort: Effort) -> Row:
    lengths = mix.lengths(effort.requests)
    waves = [lengths[start : start + BATCH] for start in range(0, len(lengths), BATCH)]

    def continuous() -> float:
        return _ask(server, lengths, len(lengths)).seconds

    def waved() -> float:
        return sum(_ask(server, wave, BATCH).seconds for wave in waves)

    def padded() -> float:
        return sum(_ask(server, [max(wave)] * len(wave), BATCH).seconds for wave in waves)

    # The kinds of batching alternate, so that a busy moment of the machine does not affect only one
    # of them.
    turns = [[way() for way in (continuous, waved, padded)] for _ in range(effort.repeats)]
    seconds = [statistics.median(turn[way] for turn in turns) for way in range(3)]
    useful, mean = sum(lengths), statistics.fmean(lengths)
    print(f"batching: {mix.name}", flush=True)
    return {
        "mix": mix.name,
        "mean length": mean,
        "continuous tokens/s": useful / seconds[0],
        "waves tokens/s": useful / seconds[1],
        "padded tokens/s": useful / seconds[2],
        "against waves": seconds[1] / seconds[0],
        "against padded": seconds[2] / seconds[0],
        "bound by steps": sum(map(max, waves)) / continuous_steps(lengths, BATCH),
        "bound L_max/L_mean": max(lengths) / mean,
    }


def _model_row(server: Server, mix: Mix, batch: int, effort: Effort) -> Row:
    """Predict the throughput of answers with mixed lengths from the latency of a batch of equally
    long answers, and measure that throughput.
    """
    lengths = mix.lengths(batch * effort.batches_of_model)
    mean = statistics.fmean(lengths)
    equal = [round(mean)] * batch
    latency, measured = (
        statistics.median(values)
        for values in zip(
            *(
                (
                    _ask(server, equal, batch).seconds,
                    _ask(server, lengths, batch).throughput,
                )
                for _ in range(effort.repeats)
            ),
            strict=True,
        )
    )
    model = throughput_model(batch, mean, latency)
    print(f"model of throughput: {mix.name}, batch {batch}", flush=True)
    return {
        "mix": mix.name,
        "batch": batch,
        "mean length": mean,
        "batch latency s": latency,
        "model tokens/s": model,
        "measured tokens/s": measured,
        "measured/model": measured / model,
    }


def _ask(server: Server, lengths: Sequence[int], concurrency: int) -> Load:
    return run(server, lengths, concurrency=concurrency, stream=False)


def throughput_model(batch: int, mean_length: float, batch_latency: float) -> float:
    """Return the predicted tokens per second: batch x mean length / batch latency."""
    return batch * mean_length / batch_latency


def continuous_steps(lengths: Sequence[int], batch: int) -> int:
    """Return the number of steps that an engine needs for answers of these lengths if it refills a
    place in the batch as soon as the place is free.
    """
    busy_until = [0] * batch
    for length in lengths:
        heapq.heapreplace(busy_until, busy_until[0] + length)
    return max(busy_until)

"""Requests with the blocks of their prompts: a public trace, and sessions of agents with tools."""

import gzip
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scaling.engine import BLOCK_TOKENS, Array


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival. Blocks are numbered from 1."""

    arrival: Array
    prompt: Array
    answer: Array
    first_block: Array
    blocks: Array

    @property
    def different_blocks(self) -> int:
        return int(self.blocks.max(initial=0))

    def faster(self, factor: float) -> "Trace":
        return replace(self, arrival=self.arrival / factor)

    def first(self, count: int) -> "Trace":
        """Return the first requests."""
        end = int(self.first_block[min(count, len(self.arrival))])
        return Trace(
            self.arrival[:count],
            self.prompt[:count],
            self.answer[:count],
            self.first_block[: count + 1],
            self.blocks[:end],
        )


def _trace(
    arrival: list[float], prompt: list[int], answer: list[int], ids: list[list[int]]
) -> Trace:
    first = np.concatenate([[0], np.cumsum([len(each) for each in ids])]).astype(np.int64)
    flat = np.array([block for each in ids for block in each], np.int64) + 1
    return Trace(np.array(arrival), np.array(prompt), np.array(answer), first, flat)


def mooncake(path: Path) -> Trace:
    """Read a trace of the Mooncake format: JSON lines, perhaps compressed by gzip."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    return _trace(
        [row["timestamp"] / 1000 for row in rows],
        [max(row["input_length"], 1) for row in rows],
        [max(row["output_length"], 1) for row in rows],
        [row["hash_ids"] for row in rows],
    )


TOOL_SETS, TURNS_MEAN, SESSIONS_PER_SECOND = 12, 8, 0.5


def agents(seed: int, seconds: float = 3600.0) -> Trace:
    """Return sessions of agents: a long prefix of instructions and tools, then turns that grow.

    A session uses one of 12 sets of tools, of 2,000 to 10,000 tokens; some sets are popular. Each
    turn repeats the session so far and adds the result of a tool. The next turn follows 2 to 30
    seconds later.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.integers(4, 20, TOOL_SETS)
    popularity = 1 / np.arange(1, TOOL_SETS + 1)
    popularity /= popularity.sum()
    number = int(sizes.sum())
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rows: list[tuple[float, int, int, list[int]]] = []
    at = 0.0
    while (at := at + rng.exponential(1 / SESSIONS_PER_SECOND)) < seconds:
        tools = rng.choice(TOOL_SETS, p=popularity)
        ids = list(range(starts[tools], starts[tools + 1]))
        tokens, now = len(ids) * BLOCK_TOKENS, at
        for _ in range(rng.geometric(1 / TURNS_MEAN)):
            tokens += int(np.clip(rng.lognormal(6.0, 1.0), 32, 16_000))
            while len(ids) < tokens // BLOCK_TOKENS:
                ids.append(number)
                number += 1
            answer = int(np.clip(rng.lognormal(4.7, 0.8), 8, 2000))
            rows.append((now, tokens, answer, list(ids)))
            tokens += answer
            now += rng.uniform(2.0, 30.0)
    rows.sort(key=lambda row: row[0])
    rows = [row for row in rows if row[0] < seconds]
    return _trace(*(list(column) for column in zip(*rows, strict=True)))

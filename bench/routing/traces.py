"""Requests with the blocks of their prompts: public traces, sessions of agents with tools, and
questions about documents.
"""

import gzip
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

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
    client: Array
    """Number of each request's client. 0 if the trace does not tell it."""

    @property
    def different_blocks(self) -> int:
        return int(self.blocks.max(initial=0))

    def faster(self, factor: float) -> "Trace":
        return replace(self, arrival=self.arrival / factor)

    def at_rate(self, requests_per_second: float) -> "Trace":
        """Return the same requests at another mean rate."""
        return self.faster(requests_per_second * float(self.arrival[-1]) / len(self.arrival))

    def first(self, count: int) -> "Trace":
        """Return the first requests."""
        end = int(self.first_block[min(count, len(self.arrival))])
        return Trace(
            self.arrival[:count],
            self.prompt[:count],
            self.answer[:count],
            self.first_block[: count + 1],
            self.blocks[:end],
            self.client[:count],
        )


def _trace(
    arrival: list[float], prompt: list[int], answer: list[int], ids: list[list[int]]
) -> Trace:
    first = np.concatenate([[0], np.cumsum([len(each) for each in ids])]).astype(np.int64)
    flat = np.array([block for each in ids for block in each], np.int64) + 1
    client = np.zeros(len(arrival), np.int64)
    return Trace(np.array(arrival), np.array(prompt), np.array(answer), first, flat, client)


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


TOOL_SETS, TURNS_MEAN = 12, 8
LEAST_GAP, LARGEST_GAP = 2.0, 30.0
"""Limits in seconds of the uniformly distributed time between two turns of a session."""


def agents(seed: int, requests_per_second: float, seconds: float = 120.0) -> Trace:
    """Return sessions of agents: a long prefix of instructions and tools, then turns that grow.

    A session uses one of 12 sets of tools, each with 2,000 to 10,000 tokens; some sets are popular.
    Each turn repeats the session so far and adds the result of a tool. The next turn follows 2 to
    30 seconds later. A higher rate of requests means more sessions, each with the same times
    between its turns.

    The rate is constant, because as many sessions as are open on average are open at the beginning.
    The context of these is that of a new session.
    """
    rng = np.random.default_rng(seed)
    turns_between = 1 - 1 / TURNS_MEAN
    open_ = int(requests_per_second * turns_between * (LEAST_GAP + LARGEST_GAP) / 2)
    sizes = rng.integers(4, 20, TOOL_SETS)
    popularity = 1 / np.arange(1, TOOL_SETS + 1)
    popularity /= popularity.sum()
    number = int(sizes.sum())
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rows: list[tuple[float, int, int, list[int]]] = []
    for at in chain(_rests_of_gaps(rng, open_), _arrivals(rng, requests_per_second / TURNS_MEAN)):
        if at >= seconds:
            break
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
            now += rng.uniform(LEAST_GAP, LARGEST_GAP)
    rows.sort(key=lambda row: row[0])
    rows = [row for row in rows if row[0] < seconds]
    return _trace(*(list(column) for column in zip(*rows, strict=True)))


def _rests_of_gaps(rng: np.random.Generator, count: int) -> Iterator[float]:
    """Yield the seconds until the next turn of sessions that are open at a random time.

    The probability that a gap contains this time is proportional to the length of the gap.
    """
    for _ in range(count):
        yield rng.uniform() * math.sqrt(rng.uniform(LEAST_GAP**2, LARGEST_GAP**2))


def _arrivals(rng: np.random.Generator, rate: float) -> Iterator[float]:
    at = 0.0
    while True:
        yield (at := at + rng.exponential(1 / rate))


DOCUMENTS, QUESTIONS_PER_SECOND = 300, 2.0


def documents(seed: int, seconds: float = 3600.0) -> Trace:
    """Return questions about documents: instructions, one to three documents, and a question.

    A document has 1,000 to 12,000 tokens. Some documents are popular. The order of the documents
    varies, and a cached document can be reused only after the same earlier documents.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 24, DOCUMENTS)
    popularity = 1 / np.arange(1, DOCUMENTS + 1) ** 0.9
    popularity /= popularity.sum()
    numbers: dict[tuple[int, ...], list[int]] = {(): [0, 1]}
    number = 2
    arrivals, prompts, answers = list[float](), list[int](), list[int]()
    blocks = list[list[int]]()
    at = 0.0
    while (at := at + rng.exponential(1 / QUESTIONS_PER_SECOND)) < seconds:
        chosen = tuple(rng.choice(DOCUMENTS, rng.integers(1, 4), replace=False, p=popularity))
        ids: list[int] = []
        for end in range(len(chosen) + 1):
            if chosen[:end] not in numbers:
                size = int(sizes[chosen[end - 1]])
                numbers[chosen[:end]] = list(range(number, number + size))
                number += size
            ids += numbers[chosen[:end]]
        question = int(np.clip(rng.lognormal(4.5, 0.8), 8, 500))
        answer = int(np.clip(rng.lognormal(5.3, 0.7), 8, 2000))
        arrivals.append(at)
        prompts.append(len(ids) * BLOCK_TOKENS + question)
        answers.append(answer)
        blocks.append(ids)
    return _trace(arrivals, prompts, answers, blocks)


SLOT_SECONDS, LENGTHS_SECONDS = 600, 21_600
MOST_VARIATION = 10.0
"""Maximum coefficient of variation of the gaps between a client's requests. A few clients of a slot
exceed it, because they send a single burst."""


def servegen(path: Path, slot: int, count: int) -> Trace:
    """Return at most `count` requests of the clients in a ServeGen file, without shared prefixes.

    The file is JSON, perhaps compressed by gzip. `slot` is the number of a ten-minute slot of the
    day. For each client, the file contains the rate, the distribution of the gaps between requests,
    and quantiles of the lengths.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as file:
        clients = json.load(file)["clients"]
    rng = np.random.default_rng(slot)
    arrivals, prompts, answers, numbers = [], [], [], []
    for number, client in enumerate(clients, 1):
        rate, variation, family = client["rate_cv_pattern_by_10min"][slot]
        period = slot * SLOT_SECONDS // LENGTHS_SECONDS * LENGTHS_SECONDS
        lengths = client["lengths_by_6h"].get(str(period))
        if rate <= 0 or lengths is None:
            continue
        gaps = _gaps(rng, rate, min(variation, MOST_VARIATION), family)
        at = np.cumsum(gaps)
        at = at[at < SLOT_SECONDS]
        arrivals.append(at)
        prompts.append(_drawn(rng, lengths["input_quantiles"], len(at)))
        answers.append(_drawn(rng, lengths["output_quantiles"], len(at)))
        numbers.append(np.full(len(at), number))
    order = np.argsort(np.concatenate(arrivals), kind="stable")[:count]
    arrival, prompt, answer, client_of = (
        np.concatenate(each)[order] for each in (arrivals, prompts, answers, numbers)
    )
    first, no_blocks = np.zeros(len(order) + 1, np.int64), np.zeros(0, np.int64)
    return Trace(arrival, prompt, answer, first, no_blocks, client_of)


def _gaps(rng: np.random.Generator, rate: float, variation: float, family: str) -> Array:
    """Return more gaps between requests than a slot needs, with a mean of 1 / rate."""
    count = int(rate * SLOT_SECONDS * 2) + 100
    if family == "Weibull":
        shape = _weibull_shape(variation)
        return rng.weibull(shape, count) / math.gamma(1 + 1 / shape) / rate
    shape = max(variation, 0.01) ** -2
    return rng.gamma(shape, 1 / shape, count) / rate


def _weibull_shape(variation: float) -> float:
    """Find by bisection the shape of a Weibull distribution with this coefficient of variation."""
    low, high = 0.1, 20.0
    for _ in range(60):
        shape = (low + high) / 2
        square = math.gamma(1 + 2 / shape) / math.gamma(1 + 1 / shape) ** 2 - 1
        low, high = (shape, high) if square > variation**2 else (low, shape)
    return (low + high) / 2


def _drawn(rng: np.random.Generator, quantiles: Sequence[float], count: int) -> Array:
    """Draw token counts from equidistant quantiles."""
    places: Any = np.linspace(0, 1, len(quantiles))
    drawn = np.interp(rng.uniform(0, 1, count), places, quantiles)
    return np.maximum(np.rint(drawn), 1).astype(np.int64)

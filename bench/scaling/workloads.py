"""Makes the traffic of the bench from a seed: the Azure trace and synthetic loads."""

import csv
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from llmservice_operator.scaling.conditions import ServiceLevelObjective
from scaling.engine import Array
from scaling.hardware import A10, H100, SLO, Hardware

TRACE = Path(__file__).parent / "data/azure_llm_conversation_2023.csv.gz"

Generator = np.random.Generator


@dataclass(frozen=True)
class Traffic:
    """Requests in order of arrival."""

    arrival: Array
    prompt: Array
    answer: Array
    cached: Array
    seconds: float
    """Time in seconds at which the traffic ends."""


@dataclass(frozen=True)
class Workload:
    """One kind of traffic on one kind of engine."""

    name: str
    hardware: Hardware
    max_replicas: int
    """Maximum number of replicas. It is about three times the need at the peak, so that it limits
    only wasteful policies."""
    make: Callable[[Generator], Traffic]
    burst_at: float | None = None
    """Time in seconds of a step up in load, from which recovery is measured. None without a step.
    """
    slo: ServiceLevelObjective = SLO
    event: str = ""
    """Disturbance of every run, as in `Run.event`."""
    first_replicas: int | None = None
    """Replicas at the start. None for as many as the oracle has."""
    needs: Path | None = None
    """Trace without which the workload cannot be made."""

    def is_present(self) -> bool:
        return self.needs is None or self.needs.is_file()


def lognormal(rng: Generator, mean: float, spread: float, low: int, high: int, n: int) -> Array:
    """Return `n` token counts with this mean and coefficient of variation, from `low` to `high`."""
    sigma = np.sqrt(np.log1p(spread**2))
    drawn = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, n)
    return np.clip(np.rint(drawn), low, high).astype(np.int64)


def gamma(rng: Generator, mean: float, spread: float, low: int, high: int, n: int) -> Array:
    drawn = rng.gamma(spread**-2, mean * spread**2, n)
    return np.clip(np.rint(drawn), low, high).astype(np.int64)


def poisson(rng: Generator, rate: Callable[[Array], Array], peak: float, seconds: float) -> Array:
    """Return the arrival times of a Poisson process with a rate that varies, drawn by thinning."""
    count = rng.poisson(peak * seconds)
    times = np.sort(rng.uniform(0, seconds, count))
    return times[rng.uniform(0, peak, count) < rate(times)]


@cache
def _trace() -> tuple[Array, Array, Array]:
    with gzip.open(TRACE, "rt") as file:
        rows = np.array([[int(cell) for cell in row] for row in list(csv.reader(file))[1:]])
    return np.cumsum(rows[:, 0]) / 1000, rows[:, 1], rows[:, 2]


def azure(rng: Generator) -> Traffic:
    """Return the conversation trace at ten times its rate.

    Ten requests arrive near the time of each original request. One in ten keeps the lengths of its
    original request, and the others draw their lengths from the whole trace.
    """
    times, prompts, answers = _trace()
    copies = 10
    moved = np.repeat(times, copies) + rng.normal(0, 5, len(times) * copies)
    moved = np.clip(moved, 0, times[-1])
    lengths = rng.integers(0, len(times), len(moved))
    nearby = np.clip(np.repeat(np.arange(len(times)), copies), 0, len(times) - 1)
    which = np.where(rng.uniform(size=len(moved)) < 0.1, nearby, lengths)
    order = np.argsort(moved, kind="stable")
    return traffic_of(moved[order], prompts[which][order], answers[which][order], times[-1])


def traffic_of(
    arrival: Array, prompt: Array, answer: Array, seconds: float, cached: Array | None = None
) -> Traffic:
    saved = np.zeros(len(arrival), np.int64) if cached is None else cached
    return Traffic(arrival, prompt, answer, saved, float(seconds))


def _conversation(rng: Generator, arrival: Array, seconds: float) -> Traffic:
    count = len(arrival)
    prompt = lognormal(rng, 1100, 1.0, 8, 8000, count)
    return traffic_of(arrival, prompt, lognormal(rng, 210, 0.8, 2, 1500, count), seconds)


def burst(rng: Generator) -> Traffic:
    """Return a load of 20 requests/s that rises to 80 requests/s for ten minutes."""
    seconds = 2400.0

    def rate(t: Array) -> Array:
        return np.where((t >= 900) & (t < 1500), 80.0, 20.0)

    return _conversation(rng, poisson(rng, rate, 80, seconds), seconds)


def diurnal(rng: Generator) -> Traffic:
    """Return two hours of a sinusoidal load, with a period of one hour and 15 to 105 requests/s."""
    seconds = 7200.0

    def rate(t: Array) -> Array:
        return 60 - 45 * np.cos(2 * np.pi * t / 3600)

    return _conversation(rng, poisson(rng, rate, 105, seconds), seconds)


def prefill_bursts(rng: Generator) -> Traffic:
    """Return long prompts with short answers. Each minute has a random rate, from 0 to 80
    requests/s.
    """
    seconds = 3600.0
    minutes = rng.gamma(0.5, 30.0, 60)
    minutes[rng.uniform(size=60) < 0.25] = 0
    minutes = np.minimum(minutes, 80)

    def rate(t: Array) -> Array:
        of_minute: Array = minutes[np.minimum((t // 60).astype(int), 59)]
        return of_minute

    arrival = poisson(rng, rate, 80, seconds)
    prompt = lognormal(rng, 2048, 0.8, 16, 7000, len(arrival))
    return traffic_of(arrival, prompt, lognormal(rng, 28, 1.0, 1, 400, len(arrival)), seconds)


def reasoning(rng: Generator) -> Traffic:
    """Return short prompts with answers that are very long on average and vary widely in length.

    The KV tokens limit the engine.
    """
    seconds = 5400.0

    def rate(t: Array) -> Array:
        return 16 - 8 * np.cos(2 * np.pi * t / 5400)

    arrival = poisson(rng, rate, 24, seconds)
    prompt = lognormal(rng, 300, 0.8, 8, 4000, len(arrival))
    return traffic_of(arrival, prompt, gamma(rng, 1500, 3.0, 8, 8192, len(arrival)), seconds)


def small_gpu(rng: Generator) -> Traffic:
    """Return two hours of a sinusoidal load with short prompts, for small accelerators."""
    seconds = 7200.0

    def rate(t: Array) -> Array:
        return 12 - 8 * np.cos(2 * np.pi * t / 3600)

    arrival = poisson(rng, rate, 20, seconds)
    prompt = lognormal(rng, 300, 0.8, 8, 1500, len(arrival))
    return traffic_of(arrival, prompt, lognormal(rng, 150, 0.8, 2, 1000, len(arrival)), seconds)


def prefix_cache(rng: Generator) -> Traffic:
    """Return the diurnal load with a prefix cache that saves 80 % of the tokens of four in five
    prompts.
    """
    plain = diurnal(rng)
    share = np.where(rng.uniform(size=len(plain.arrival)) < 0.8, 0.8, 0.0)
    cached = np.minimum((plain.prompt * share).astype(np.int64), plain.prompt - 1)
    return traffic_of(plain.arrival, plain.prompt, plain.answer, plain.seconds, cached)


GATE_WORKLOADS = (
    Workload("azure", H100, 40, azure),
    Workload("burst", H100, 30, burst, burst_at=900.0),
    Workload("diurnal", H100, 36, diurnal),
    Workload("prefill-bursts", H100, 40, prefill_bursts),
    Workload("reasoning", H100, 36, reasoning),
    Workload("small-gpu", A10, 60, small_gpu),
)

PREFIX_CACHE = Workload("prefix-cache", H100, 24, prefix_cache)

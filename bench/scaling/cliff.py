"""Searches for cliffs: small changes of a limit of the SLO that change the capacity much.

Mixes and engines are random. The limits are near the latency of an idle engine or above it.
"""

import math
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from llmservice_operator.scaling.capacity import LEAST_SHARE, idle_itl, idle_ttft, sustainable_rate
from llmservice_operator.scaling.conditions import EngineLimits, RequestMix, ServiceLevelObjective
from llmservice_operator.scaling.lengths import Lengths
from llmservice_operator.scaling.misses import misses
from llmservice_operator.scaling.step_model import StepModel
from scaling.workloads import Generator

CASES = 10_000
STEP = 1.01
"""Ratio of two neighbouring limits."""
MOST_FALL = 0.30
NONE = ServiceLevelObjective(None, None)


@dataclass(frozen=True)
class Case:
    """One engine under one mix."""

    mix: RequestMix
    model: StepModel
    limits: EngineLimits

    @property
    def idle(self) -> tuple[float, float]:
        """The longest TTFT and the ITL of an idle engine, in seconds."""
        longest = max(tokens for tokens, _ in self.mix.prompts.points)
        return idle_ttft(longest, self.model, self.limits), idle_itl(self.mix, self.model)

    def capacity(self, slo: ServiceLevelObjective) -> float:
        return sustainable_rate(self.mix, self.model, self.limits, slo)

    def by_definition(self, slo: ServiceLevelObjective) -> float:
        """Return the rate at which the misses that the load adds reach the objective."""
        low, high = 0.0, 1 / self.mix.work(self.model)
        idle = misses(0.0, self.mix, self.model, self.limits, slo)
        for _ in range(24):
            rate = (low + high) / 2
            now = misses(rate, self.mix, self.model, self.limits, slo)
            met = math.prod(
                (1 - it) / (1 - always) if always < 1 else 1.0
                for it, always in zip(now, idle, strict=True)
            )
            low, high = (rate, high) if met >= slo.objective else (low, rate)
        return high


@dataclass(frozen=True)
class Finding:
    """Results of one case."""

    fall: float
    """Greatest share of the capacity that a change of one limit by 1 % takes away."""
    error: float
    """Relative difference from the definition where each limit is at least twice the latency of an
    idle engine."""


def random_case(rng: Generator) -> Case:
    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    def lengths(longest: float) -> Lengths:
        count = int(rng.integers(1, 5))
        shares = rng.dirichlet(np.ones(count)).tolist()
        return Lengths(tuple((between(1, longest), share) for share in shares))

    prompts, answers = lengths(30_000), lengths(8000)
    mix = RequestMix(prompts, answers, prompts.mean + answers.mean * rng.uniform(0.5, 1.5))
    if rng.uniform() < 0.2:
        mix = replace(mix, tokens_per_step=float(rng.uniform(1, 4)))
    fixed = between(2e-3, 0.1)
    model = StepModel(
        fixed,
        fixed * between(1e-3, 2e-2),
        fixed * between(5e-4, 2e-2),
        fixed * between(1e-6, 3e-5),
    )
    limits = EngineLimits(
        int(2 ** rng.integers(3, 10)), between(20_000, 1e6), int(2 ** rng.integers(8, 14))
    )
    return Case(mix, model, limits)


def examined(seed: int) -> Finding:
    """Examine one random case at one limit of the ITL and one of the TTFT."""
    rng = np.random.default_rng(seed)
    case = random_case(rng)
    tokens = float(rng.choice([tokens for tokens, _ in case.mix.prompts.points]))
    idle = {
        "itl_seconds": case.idle[1],
        "ttft_seconds": idle_ttft(tokens, case.model, case.limits),
    }
    fall = 0.0
    for name, seconds in idle.items():
        limit = seconds * (rng.uniform(0.97, 1.3) if rng.uniform() < 0.7 else rng.uniform(0.5, 4))
        low, high = (
            case.capacity(replace(NONE, **{name: value})) for value in (limit, STEP * limit)
        )
        fall = max(fall, 1 - min(low, high) / max(low, high))
    ttft, itl = case.idle
    easy = ServiceLevelObjective(ttft * rng.uniform(2, 6), itl * rng.uniform(2, 6))
    expected = max(case.by_definition(easy), LEAST_SHARE * case.capacity(NONE))
    return Finding(fall, abs(case.capacity(easy) / expected - 1))


def search(seeds: Iterable[int], jobs: int) -> list[Finding]:
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(examined, seeds, chunksize=50))

"""Verdicts: a paired ratio, its 90 % interval, and whether it lies on the right side of a limit."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_RESAMPLES = 5000
_CONFIDENCE = 0.90
_FEWEST_PAIRS = 5
"""Below it a bootstrap knows too little of how the pairs differ."""


@dataclass(frozen=True)
class Interval:
    """A mean ratio and where it lies with 90 % confidence."""

    mean: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Gate:
    """A limit on the ratio of ours to stock."""

    name: str
    limit: float
    at_least: bool

    def verdict(self, ratio: Interval) -> str:
        """PASS or FAIL when the whole interval is on one side of the limit, else UNDECIDED."""
        if ratio.pairs < _FEWEST_PAIRS:
            return f"UNDECIDED ({ratio.pairs} pairs)"
        if self.at_least:
            passes, fails = ratio.low >= self.limit, ratio.high < self.limit
        else:
            passes, fails = ratio.high <= self.limit, ratio.low > self.limit
        if passes or fails:
            return "PASS" if passes else "FAIL"
        return f"UNDECIDED (width {ratio.high - ratio.low:.3f})"

    def line(self, ratio: Interval, control: Interval | None) -> str:
        """Return what is printed for the gate."""
        sign = ">=" if self.at_least else "<="
        beside = f"  stock/stock {control}" if control else ""
        return f"GATE {self.name} {self.verdict(ratio)} {ratio} {sign} {self.limit}{beside}"


THROUGHPUT_PLAIN = Gate("throughput_plain", 0.98, at_least=True)
THROUGHPUT_STREAM = Gate("throughput_stream", 0.98, at_least=True)
TTFT_P99 = Gate("ttft_p99", 1.05, at_least=False)
API_CPU_PER_TOKEN = Gate("api_cpu_per_token", 1.05, at_least=False)
START_TO_READY = Gate("start_to_ready", 0.5, at_least=False)


def paired_ratio(ours: Sequence[float], stock: Sequence[float]) -> Interval:
    """Return the geometric mean of the ratios of pairs, with a bootstrap interval.

    The two of a pair ran one after the other, so what slowed the machine down slowed both.
    """
    logs = [math.log(a / b) for a, b in zip(ours, stock, strict=True)]
    chance = random.Random(0)
    means = sorted(statistics.fmean(chance.choices(logs, k=len(logs))) for _ in range(_RESAMPLES))
    cut = round(_RESAMPLES * (1 - _CONFIDENCE) / 2)
    return Interval(
        mean=math.exp(statistics.fmean(logs)),
        low=math.exp(means[cut]),
        high=math.exp(means[-cut - 1]),
        pairs=len(logs),
    )

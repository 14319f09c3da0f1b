"""Gives the verdicts of the gates: compares the 90 % interval of a paired ratio with a limit."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_CONFIDENCE = 0.90


@dataclass(frozen=True)
class Interval:
    """A typical ratio, and the interval that contains it with 90 % confidence."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Gate:
    """A limit on the ratio of our server's figure to that of stock vLLM."""

    name: str
    limit: float
    at_least: bool

    def verdict(self, ratio: Interval | None) -> str:
        """Return PASS or FAIL when the whole interval is on one side of the limit, and UNDECIDED
        otherwise.

        A gate without a measurement has failed.
        """
        if ratio is None:
            return "FAIL"
        if self.at_least:
            passes, fails = ratio.low >= self.limit, ratio.high < self.limit
        else:
            passes, fails = ratio.high <= self.limit, ratio.low > self.limit
        if passes or fails:
            return "PASS" if passes else "FAIL"
        return f"UNDECIDED (width {ratio.high - ratio.low:.3f})"

    def line(self, ratio: Interval | None, control: Interval | None) -> str:
        """Return the printed line of the gate."""
        sign = ">=" if self.at_least else "<="
        beside = f"  stock/stock {control}" if control else ""
        shown = "missing" if ratio is None else str(ratio)
        return f"GATE {self.name} {shown} {sign}{self.limit} {self.verdict(ratio)}{beside}"


GATES = (
    Gate("throughput_plain", 0.98, at_least=True),
    Gate("throughput_stream", 0.99, at_least=True),
    Gate("throughput_overload", 0.98, at_least=True),
    Gate("ttft_p99", 1.05, at_least=False),
    Gate("api_cpu_per_token", 0.95, at_least=False),
    Gate("start_to_ready", 0.5, at_least=False),
    Gate("speculation_gain", 1.2, at_least=True),
)


@dataclass(frozen=True)
class Ratios:
    """Ratios of one gate: our server to stock vLLM and, as the control, stock vLLM to itself."""

    ours: Interval | None
    stock: Interval | None = None


def lines(found: Mapping[str, Ratios], *, only_found: bool = False) -> list[str]:
    """Return a line for every gate. A gate that was not measured has failed."""
    nothing = Ratios(None)
    return [
        gate.line(found.get(gate.name, nothing).ours, found.get(gate.name, nothing).stock)
        for gate in GATES
        if gate.name in found or not only_found
    ]


def paired_ratio(ours: Sequence[float], stock: Sequence[float]) -> Interval | None:
    """Return the typical ratio of pairs with its interval. None for fewer than five pairs.

    The two runs of a pair follow each other closely, so a slow machine slows both. The estimate is
    that of Hodges and Lehmann. The interval contains the ratios that Wilcoxon's signed-rank test
    does not reject. It has at least 90 % confidence for any symmetric noise, and one disturbed pair
    changes it little. With fewer than five pairs, no such interval has 90 % confidence.
    """
    logs = [math.log(a / b) for a, b in zip(ours, stock, strict=True)]
    means = sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(logs, 2))
    outside = _rejected_ranks(len(logs), (1 - _CONFIDENCE) / 2)
    if not outside:
        return None
    return Interval(
        middle=math.exp(statistics.median(means)),
        low=math.exp(means[outside - 1]),
        high=math.exp(means[-outside]),
    )


def _rejected_ranks(pairs: int, share: float) -> int:
    """Return how many of the lowest signed-rank sums together have a probability up to `share`."""
    ways = [1]
    for rank in range(1, pairs + 1):
        longer = ways + [0] * rank
        for total, count in enumerate(ways):
            longer[total + rank] += count
        ways = longer
    limit = share * 2**pairs
    rejected = 0
    for summed in itertools.accumulate(ways):
        if summed > limit:
            break
        rejected += 1
    return rejected

"""Percentiles of TTFT and ITL over the last minute, from cumulative histograms of the replicas."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from llmservice_operator.scaling.sums import Sums

BUCKETS_PER_DOUBLING = 4
LATENCY_BUCKETS = 73
"""Bucket i counts latencies in (2**((i-1)/4), 2**(i/4)] ms. The last bucket, which ends at 262 s,
also counts all longer latencies."""

WINDOW_SECONDS = 60.0

Histogram = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Latencies(Sums):
    """Histograms of finished requests: time to first token, and mean inter-token latency."""

    ttft: Histogram = (0.0,) * LATENCY_BUCKETS
    itl: Histogram = (0.0,) * LATENCY_BUCKETS

    def since(self, before: "Latencies") -> "Latencies":
        """Return the requests counted after `before`.

        A counter that fell shows that the process restarted. In that case, return all requests.
        """
        difference = self.plus(before, -1.0)
        went_back = min(*difference.ttft, *difference.itl) < 0
        return self if went_back else difference


class _Tick(NamedTuple):
    """Requests that finished between two scrapes. Most buckets are empty, so only the others are
    kept.
    """

    at: float
    ttft: "_Filled"
    itl: "_Filled"


_Filled = tuple[tuple[int, float], ...]
"""Number and content of each bucket that is not empty."""


def _filled(histogram: Histogram) -> _Filled:
    return tuple([each for each in enumerate(histogram) if each[1]])


def _sum_of(ticks: Iterable[_Filled]) -> Histogram:
    total = [0.0] * LATENCY_BUCKETS
    for tick in ticks:
        for bucket, number in tick:
            total[bucket] += number
    return tuple(total)


@dataclass(frozen=True, slots=True)
class LatencyWindow:
    """Latencies of the requests that finished in the last minute."""

    marks: Mapping[str, Latencies] = field(default_factory=dict)
    """The newest report of each replica."""
    ticks: tuple["_Tick", ...] = ()

    def add(
        self, at: float, reports: Mapping[str, Latencies], replicas: Iterable[str]
    ) -> "LatencyWindow":
        """Add the replicas' reports. The first report of a replica only sets its starting point."""
        total = Latencies()
        for name, latencies in reports.items():
            if name in self.marks:
                total = total.plus(latencies.since(self.marks[name]))
        marks = {**self.marks, **reports}
        return LatencyWindow(
            {name: marks[name] for name in replicas if name in marks},
            (
                *(tick for tick in self.ticks if tick.at > at - WINDOW_SECONDS),
                _Tick(at, _filled(total.ttft), _filled(total.itl)),
            ),
        )

    @property
    def total(self) -> Latencies:
        return Latencies(
            _sum_of(tick.ttft for tick in self.ticks), _sum_of(tick.itl for tick in self.ticks)
        )


def percentile_milliseconds(histogram: Histogram, share: float) -> float | None:
    """Return the latency in milliseconds that this share of the requests did not exceed.

    None if the histogram contains no requests.
    """
    count = sum(histogram)
    if count <= 0:
        return None
    rank, seen = share * count, 0.0
    for bucket, number in enumerate(histogram):
        if number > 0 and seen + number >= rank:
            inside = (rank - seen) / number
            return float(2 ** ((bucket - 1 + inside) / BUCKETS_PER_DOUBLING))
        seen += number
    return float(2 ** ((LATENCY_BUCKETS - 1) / BUCKETS_PER_DOUBLING))

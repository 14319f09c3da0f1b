"""The gates of the operator: a limit for each figure, and the verdict on the measured figure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from operator_bench.figures import Cell

_CONFIDENCE = 0.90


@dataclass(frozen=True)
class Figure:
    """A measured figure and its confidence interval."""

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> "Figure":
        return cls(value, value, value)

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Gate:
    """A limit that a figure must not exceed."""

    name: str
    limit: float
    of: Callable[[Mapping[int, Cell]], Figure | None]
    """Function that reads the figure from the measurements, which are keyed by the number of
    services. It returns None if the figure was not measured."""

    def line(self, cells: Mapping[int, Cell]) -> str:
        """Return the printed line. A gate that was not measured has failed."""
        figure = self.of(cells)
        shown = "missing" if figure is None else str(figure)
        return f"GATE {self.name} {shown} {self.limit:g} {self._verdict(figure)}"

    def _verdict(self, figure: Figure | None) -> str:
        if figure is None or figure.low > self.limit:
            return "FAIL"
        return "PASS" if figure.high <= self.limit else "UNDECIDED"


def quantile(values: Sequence[float], share: float) -> Figure | None:
    """Return a quantile with the interval that contains it with 90 % confidence. None if there are
    no values.

    The ends of the interval are two of the sorted values. Their ranks follow from the binomial
    distribution. If there are too few values for one end of the interval, that end is infinite.
    """
    if not values:
        return None
    ordered, number = sorted(values), len(values)
    below = [
        math.comb(number, hits) * share**hits * (1 - share) ** (number - hits)
        for hits in range(number + 1)
    ]
    outside = (1 - _CONFIDENCE) / 2
    total, low, high = 0.0, -math.inf, math.inf
    for hits, probability in enumerate(below[:-1]):
        total += probability
        if total <= outside:
            low = ordered[hits]
        if total >= 1 - outside:
            high = ordered[hits]
            break
    value = ordered[min(number - 1, math.ceil(share * number) - 1)]
    return Figure(value, min(low, value), max(high, value))


def ratio(above: float | None, below: float | None) -> Figure | None:
    if above is None or not below:
        return None
    return Figure.exactly(above / below)


def _at(size: int, figure: Callable[[Cell], float | None]) -> Callable[..., Figure | None]:
    def read(cells: Mapping[int, Cell]) -> Figure | None:
        value = figure(cells[size]) if size in cells else None
        return None if value is None else Figure.exactly(value)

    return read


def _p95(name: str) -> Callable[..., Figure | None]:
    def read(cells: Mapping[int, Cell]) -> Figure | None:
        return quantile(cells[1000].event_ms.get(name, ()), 0.95) if 1000 in cells else None

    return read


def _create(cells: Mapping[int, Cell]) -> Figure | None:
    cell = cells.get(1000)
    return ratio(cell.create_seconds, cell.plain_create_seconds) if cell else None


def _delete(cells: Mapping[int, Cell]) -> Figure | None:
    cell = cells.get(1000)
    return ratio(cell.delete_seconds, cell.plain_delete_seconds) if cell else None


def _growth(cells: Mapping[int, Cell]) -> Figure | None:
    if 100 not in cells or 5000 not in cells:
        return None
    return ratio(cells[5000].cpu_ms_per_service, cells[100].cpu_ms_per_service)


GATES = (
    Gate("create_1000_vs_plain_apply", 2.0, _create),
    Gate("restart_1000", 60.0, _at(1000, lambda cell: cell.restart_seconds)),
    Gate("restart_1000_writes", 0, _at(1000, lambda cell: cell.restart_writes)),
    Gate("rss_1000", 160.0, _at(1000, lambda cell: cell.rss_mib)),
    Gate("rss_5000", 512.0, _at(5000, lambda cell: cell.rss_mib)),
    Gate("delete_1000", 1.3, _delete),
    Gate("idle_requests", 2.0, _at(1000, lambda cell: cell.idle_requests_per_second)),
    Gate("event_to_apply_p95", 500.0, _p95("quiet")),
    Gate("event_to_apply_p95_metrics_server_hangs", 500.0, _p95("metrics server hangs")),
    Gate("event_to_apply_p95_webhook_hangs", 500.0, _p95("webhook hangs")),
    Gate("cost_growth", 1.3, _growth),
)
"""The limits are ratios, seconds, numbers of writes, MiB, requests per second, or milliseconds."""


def lines(cells: Mapping[int, Cell]) -> list[str]:
    """Return a line for every gate."""
    return [gate.line(cells) for gate in GATES]

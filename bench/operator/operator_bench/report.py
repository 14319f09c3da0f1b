"""The table and the plot of the measurements."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from operator_bench.figures import Cell
from operator_bench.gates import quantile

Row = dict[str, object]

_PANELS: dict[str, dict[str, Callable[[Cell], float | None]]] = {
    "seconds": {
        "create": lambda cell: cell.create_seconds,
        "converge": lambda cell: cell.converge_seconds,
        "restart": lambda cell: cell.restart_seconds,
        "delete": lambda cell: cell.delete_seconds,
    },
    "highest RSS in MiB": {"rss": lambda cell: cell.rss_mib},
    "CPU ms": {
        "per service": lambda cell: cell.cpu_ms_per_service,
        "per pass": lambda cell: cell.cpu_ms_per_pass,
    },
    "ms from event to apply": {
        "p50": lambda cell: _event_ms(cell, "quiet", 0.50),
        "p95": lambda cell: _event_ms(cell, "quiet", 0.95),
        "p99": lambda cell: _event_ms(cell, "quiet", 0.99),
    },
}


def rows(cells: Iterable[Cell]) -> list[Row]:
    """Return the rows of the table. A missing figure gives an empty cell."""
    return [_row(cell) for cell in cells]


def _row(cell: Cell) -> Row:
    figures: dict[str, float | None] = {
        "bare create s": cell.plain_create_seconds,
        "create s": cell.create_seconds,
        "converge s": cell.converge_seconds,
        "restart s": cell.restart_seconds,
        "restart writes": cell.restart_writes,
        "bare delete s": cell.plain_delete_seconds,
        "delete s": cell.delete_seconds,
        "CPU ms/service": cell.cpu_ms_per_service,
        "CPU ms/pass": cell.cpu_ms_per_pass,
        "RSS MiB": cell.rss_mib,
        "idle req/s": cell.idle_requests_per_second,
        **{
            f"{_SHORT[name]}p{share * 100:.0f} ms": _event_ms(cell, name, share)
            for name in _SHORT
            for share in (0.50, 0.95, 0.99)
        },
    }
    shown = {name: "" if value is None else value for name, value in figures.items()}
    return {"services": cell.services, **shown}


_SHORT = {"quiet": "", "metrics server hangs": "metrics ", "webhook hangs": "webhook "}
"""Mapping from the conditions of a measurement of changes to the prefix of its columns."""


def _event_ms(cell: Cell, name: str, share: float) -> float | None:
    found = quantile(cell.event_ms.get(name, ()), share)
    return None if found is None else found.value


def draw(path: Path, cells: Sequence[Cell]) -> None:
    """Draw every figure against the number of services."""
    figure, all_axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axes, (unit, curves) in zip(all_axes.flat, _PANELS.items(), strict=True):
        for label, figure_of in curves.items():
            points = [(cell.services, figure_of(cell)) for cell in cells]
            known = [(size, value) for size, value in points if value is not None]
            axes.plot([x for x, _ in known], [y for _, y in known], "o-", label=label)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("services")
        axes.set_ylabel(unit)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)
    plt.close(figure)

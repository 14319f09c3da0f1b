"""Labels of the series in the tests of the alerts, as a real Prometheus scraped them.

The tests in e2e compare the file with scrapes of the local cluster.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import yaml

from chart_support.helm import CHART

FILE = CHART / "tests" / "scraped_labels.yaml"
_COMMENT = """\
# Label names of each metric in alerts.yaml, as a real Prometheus scraped them with the PodMonitors
# of the chart. The tests in e2e compare their scrapes with this file. If they run with
# --update-golden, they add what it lacks.
"""

NEVER_SCRAPED = {"controller_runtime_reconcile_errors_total", "llm_gpu_throttled"}
"""Metrics of the tests that need a pass that fails, or an NVIDIA GPU."""


@cache
def cases() -> dict[str, Any]:
    """Return the tests of the alerts, by the name of the alert."""
    found: dict[str, Any] = yaml.safe_load((CHART / "tests" / "alerts.yaml").read_text())
    return found


def parse_series(series: str) -> tuple[str, dict[str, str]]:
    """Return the name and the labels of a series in the notation of promtool."""
    name, _, labels = series.partition("{")
    return name, dict(re.findall(r'(\w+)="([^"]*)"', labels))


def names_in_cases() -> set[str]:
    """Return the names of the metrics in the tests of the alerts."""
    return {parse_series(series)[0] for case in cases().values() for series in case["series"]}


@cache
def recorded() -> dict[str, list[list[str]]]:
    """Return the label sets of each scraped metric."""
    found = yaml.safe_load(FILE.read_text())
    return {name: [each.split() for each in sets] for name, sets in found.items()}


def unknown(series: Iterable[Mapping[str, str]], *, record: bool) -> list[str]:
    """Return the label sets of scraped metrics that the file lacks. With `record`, write them to
    the file instead.

    The label `__name__` of a series is the name of its metric. Only the metrics of the tests count.
    """
    known = {(name, *labels) for name, sets in recorded().items() for labels in sets}
    wanted = names_in_cases()
    found = {
        (each["__name__"], *sorted(each.keys() - {"__name__"}))
        for each in series
        if each["__name__"] in wanted
    }
    if record:
        _write(known | found)
        return []
    return sorted(" ".join(each) for each in found - known)


def _write(label_sets: Iterable[tuple[str, ...]]) -> None:
    text: dict[str, list[str]] = {}
    for name, *labels in sorted(label_sets):
        text.setdefault(name, []).append(" ".join(labels))
    recorded.cache_clear()
    FILE.write_text(_COMMENT + yaml.safe_dump(text, width=120))


def completed(series: str) -> str:
    """Return a series with all labels of the scrape. Those that it lacks get the value `x`.

    Raises AssertionError if no scraped series of the metric has all labels of this one.
    """
    name, labels = parse_series(series)
    if name in NEVER_SCRAPED:
        return series
    fitting = [each for each in recorded()[name] if labels.keys() <= {*each}]
    assert fitting, f"{series} has labels that no scraped series has: {recorded()[name]}"
    whole = {key: labels.get(key, "x") for key in min(fitting, key=len)}
    inside = ",".join(f'{key}="{value}"' for key, value in whole.items())
    return f"{name}{{{inside}}}"

"""Reads the tables of docs/metrics.md, and compares them with what a process exposes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

STANDARD = ("process_", "python_")
"""Prefixes of the metrics of Prometheus's Python client."""

_ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<type>\w+) \|(?P<labels>[^|]*)\| .+ \|$", re.M)


@dataclass(frozen=True)
class Row:
    """One metric of the table. The name may end with `*`, which stands for any further letters."""

    name: str
    type: str
    labels: frozenset[str]

    def matches(self, name: str) -> bool:
        return name.startswith(self.name[:-1]) if self.name.endswith("*") else name == self.name

    @property
    def series(self) -> frozenset[str]:
        """Names of the metric's series."""
        if self.type != "histogram":
            return frozenset({self.name})
        return frozenset(f"{self.name}_{suffix}" for suffix in ("bucket", "count", "sum"))


_NO_METRIC = re.compile(
    r"""\{[^}]*\}|\[[^\]]*\]|"[^"]*"|\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"""
)
"""Parts of a query of Prometheus that contain no name of a metric."""
_NAME = re.compile(r"(?<![\w:])[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\(|[a-zA-Z0-9_:])")
_OPERATORS = {"and", "or", "unless", "bool", "offset"}


def names_in(query: str) -> set[str]:
    """Return the names of the metrics in a query of Prometheus."""
    return set(_NAME.findall(_NO_METRIC.sub(" ", query))) - _OPERATORS


def labels_in(query: str) -> set[str]:
    """Return the labels that a query of Prometheus names."""
    lists = re.findall(r"\b(?:by|on|group_left|group_right)\s*\(([^)]*)\)", query)
    matchers = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query)
    return {label.strip() for each in lists for label in each.split(",") if label.strip()} | {
        *matchers
    }


@cache
def tables() -> dict[str, tuple[Row, ...]]:
    """Return the rows below each heading of the page."""
    _, *sections = re.split(r"^## ", PAGE.read_text(), flags=re.M)
    found = {}
    for section in sections:
        rows = tuple(
            Row(it["name"], it["type"], frozenset(re.findall("`([^`]+)`", it["labels"])))
            for it in _ROW.finditer(section)
        )
        if rows:
            found[section.partition("\n")[0]] = rows
    return found


def rows_of(name: str) -> list[Row]:
    """Return the rows of the page that contain the series of this name."""
    if name.startswith(STANDARD):
        return [Row(name, "any", frozenset())]
    rows = (row for table in tables().values() for row in table)
    return [row for row in rows if row.matches(name) or name in row.series]


def differences(exposition: str, *headings: str, all_exposed: bool = True) -> list[str]:
    """Return the differences between the text of a process and the tables below the headings.

    Only series that have a value show their labels. Without `all_exposed`, the process may lack
    metrics of the tables.
    """
    rows = [row for heading in headings for row in tables()[heading]]
    families = {_name(it): it for it in _families(exposition)}
    problems = [
        f"{row.name} is not exposed"
        for row in rows
        if all_exposed and not any(row.matches(name) for name in families)
    ]
    for name, family in families.items():
        row = next((it for it in rows if it.matches(name)), None)
        if row is None:
            problems.append(f"{name} is not in docs/metrics.md")
        elif not row.name.endswith("*"):
            problems += _differences_of(family, row)
    return problems


def _differences_of(family: Metric, row: Row) -> Iterator[str]:
    if family.type != row.type:
        yield f"{row.name} is a {family.type}, not a {row.type}"
    for sample in family.samples:
        labels = sample.labels.keys() - {"le"}
        if labels != row.labels:
            yield f"{row.name} has the labels {sorted(labels)}, not {sorted(row.labels)}"
            break


def _families(exposition: str) -> Iterator[Metric]:
    for family in text_string_to_metric_families(exposition):
        if not family.name.startswith(STANDARD) and not family.name.endswith("_created"):
            yield family


def _name(family: Metric) -> str:
    """Return the name of the series; the parser removes the suffix of counters."""
    return f"{family.name}_total" if family.type == "counter" else family.name

"""Reads the dashboards of the chart."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chart_support.helm import CHART

FILES = sorted((CHART / "files" / "dashboards").glob("*.json"))


def dashboard(file: Path) -> Any:
    return json.loads(file.read_text())


def panels(file: Path) -> Iterator[Any]:
    yield from (panel for panel in dashboard(file)["panels"] if panel["type"] != "row")


def queries(file: Path) -> Iterator[str]:
    for panel in panels(file):
        for target in panel["targets"]:
            yield target["expr"]


def with_variables(
    query: str,
    release: str,
    rate_interval: str,
    namespace: str = ".*",
    llmservice: str = ".*",
) -> str:
    """Return a query of a dashboard as Grafana sends it: of these services, by default of all, and
    of the release in this namespace.
    """
    for variable, value in (
        ("$__rate_interval", rate_interval),
        ("$namespace", namespace),
        ("$llmservice", llmservice),
        ("$release", release),
    ):
        query = query.replace(variable, value)
    assert "$" not in query
    return query

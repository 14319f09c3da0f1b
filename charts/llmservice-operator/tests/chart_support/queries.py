"""Checks queries of Prometheus against docs/metrics.md and the metrics that the chart records."""

from functools import cache
from typing import Any

from chart_support.helm import find, render
from shared_support.metric_table import labels_in, names_in, rows_of

_LABELS_OF_A_TARGET = {"namespace", "pod", "llmservice", "le"}
"""Labels that Prometheus or the PodMonitors add, and that of the buckets of a histogram."""
_LABELS_OF_OTHERS = {
    *("engine", "model_name", "slo"),
    *("envoy_http_conn_manager_prefix", "envoy_response_code_class"),
}
"""Labels of the metrics of vLLM and Envoy, and of the recorded metrics."""


@cache
def rules() -> list[Any]:
    """Return all rules of the chart."""
    rule = find(render({"monitoring": {"enabled": True}}), "PrometheusRule")
    return [each for group in rule["spec"]["groups"] for each in group["rules"]]


def unknown_metrics(query: str) -> set[str]:
    """Return the metrics of a query that no process exposes and no rule records."""
    recorded = {each["record"] for each in rules() if "record" in each}
    return {name for name in names_in(query) - recorded if not rows_of(name)}


def unknown_labels(query: str) -> set[str]:
    """Return the labels of a query that none of its metrics has."""
    known = {label for name in names_in(query) for row in rows_of(name) for label in row.labels}
    return labels_in(query) - known - _LABELS_OF_A_TARGET - _LABELS_OF_OTHERS

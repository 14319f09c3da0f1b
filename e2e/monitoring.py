"""Scrapes a local cluster with a real Prometheus, as the PodMonitors and rules of the chart say."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from chart_support import dashboards
from chart_support.helm import render
from e2e_support import ROOT
from localkube.cluster import Cluster as LocalCluster
from pod_monitors import scrape_config
from shared_support.metric_table import rows_of, tables
from stage import RELEASE, SYSTEM_NAMESPACE, localkube

SCRAPE_SECONDS = 5
"""Interval in seconds of scrapes and of the evaluation of rules."""
RATE_INTERVAL = "30s"
"""Value of Grafana's $__rate_interval."""

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}
"""Units of the times in the rules."""

OF_PROMETHEUS = {
    *("up", "ALERTS", "ALERTS_FOR_STATE", "scrape_duration_seconds", "scrape_samples_scraped"),
    *("scrape_samples_post_metric_relabeling", "scrape_series_added"),
}
"""Series that Prometheus itself adds."""

SILENT = ROOT / "e2e" / "silent.yaml"

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that scrapes the local cluster."""

    url: str
    started: float
    """Time of its start, in seconds since 1970."""

    def has_answered(self, query: str, since: float | None = None) -> bool:
        """Return whether the query has returned a number since this time, or since the start."""
        found = self.range(query, self.started if since is None else since, time.time())
        return any(value != "NaN" for series in found for _, value in series["values"])

    def range(self, query: str, began: float, ended: float) -> list[Any]:
        """Return the series of the query during this time, in seconds since 1970.

        Each has its labels (`metric`), and its `values` as pairs of a time and a text.
        """
        asked = {"query": query, "start": began, "end": ended, "step": SCRAPE_SECONDS}
        found: list[Any] = self.ask("query_range", **asked)["result"]
        return found

    def answers(self, query: str) -> list[Labels]:
        """Return the labels of the series that the query returns now."""
        return [each["metric"] for each in self.ask("query", query=query)["result"]]

    def alerts(self) -> list[Any]:
        """Return the alerts that fire now, with their labels and texts."""
        found: list[Any] = self.ask("alerts")["alerts"]
        return [each for each in found if each["state"] == "firing"]

    def series(self) -> list[Labels]:
        """Return the labels of all series since the start; `__name__` is the name of the metric."""
        asked = {"match[]": '{__name__!=""}', "start": self.started}
        found: list[Labels] = self.ask("series", **asked)
        return found

    def ask(self, path: str, **parameters: object) -> Any:
        """Return the data of an answer of the HTTP API.

        Raises AssertionError with Prometheus's message if it refuses the request.
        """
        body = urllib.parse.urlencode(parameters).encode()
        verb = "POST" if path.startswith("query") else "GET"
        url = f"{self.url}/api/v1/{path}" + ("" if verb == "POST" else f"?{body.decode()}")
        request = urllib.request.Request(url, data=body if verb == "POST" else None, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error


@cache
def _objects() -> list[Any]:
    """Return the objects of the chart, with its monitoring switched on."""
    interval = f"{SCRAPE_SECONDS}s"
    values = {"monitoring": {"enabled": True, "podMonitors": {"interval": interval}}}
    return render(values, release=RELEASE, namespace=SYSTEM_NAMESPACE)


def _groups(sooner: int = 1) -> list[Any]:
    """Return the groups of rules. Prometheus evaluates them all in its own interval."""
    (rule,) = (it for it in _objects() if it["kind"] == "PrometheusRule")
    return [
        {"name": it["name"], "rules": [_with_wait(each, sooner) for each in it["rules"]]}
        for it in rule["spec"]["groups"]
    ]


def _with_wait(rule: Mapping[str, Any], sooner: int) -> Mapping[str, Any]:
    """Return the rule, whose state must last for a part of its time before it fires."""
    if "for" not in rule:
        return rule
    amount, unit = int(rule["for"][:-1]), rule["for"][-1]
    return {**rule, "for": f"{amount * UNIT_SECONDS[unit] // sooner}s"}


def start_prometheus(cluster: str, folder: Path, sooner: int = 1) -> Prometheus:
    """Start Prometheus in this local cluster, with its configuration in the folder.

    Alerts fire `sooner` times as early as in the chart.
    """
    kubeconfig = LocalCluster(cluster).kubeconfig
    monitors = [it for it in _objects() if it["kind"] == "PodMonitor"]
    config = {
        "global": {"evaluation_interval": f"{SCRAPE_SECONDS}s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [scrape_config(it, kubeconfig) for it in monitors],
    }
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": _groups(sooner)}))
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    started = time.time()
    options = ("--config", str(folder / "prometheus.yaml"), "--name", cluster)
    return Prometheus(localkube("prometheus", "start", *options, capture=True).strip(), started)


def stop_prometheus(cluster: str) -> None:
    localkube("prometheus", "stop", "--name", cluster)


def queries() -> dict[str, str]:
    """Return every query of the dashboards and of the rules, by its name.

    The name is that of the alert or of the recorded metric, or the dashboard and the title of the
    panel. A panel with several queries adds the legend.
    """
    found = [*_queries_of_rules(), *_queries_of_panels()]
    assert len(dict(found)) == len(found), "two queries have the same name"
    return dict(found)


def _queries_of_rules() -> Iterator[tuple[str, str]]:
    for rule in (rule for group in _groups() for rule in group["rules"]):
        if "alert" in rule:
            yield rule["alert"], rule["expr"]
        else:
            part = " of availability" if rule.get("labels") else ""
            yield f"{rule['record']}{part}", rule["expr"]


def _queries_of_panels() -> Iterator[tuple[str, str]]:
    for file in dashboards.FILES:
        for panel in dashboards.panels(file):
            for target in panel["targets"]:
                legend = f" ({target['legendFormat']})" if len(panel["targets"]) > 1 else ""
                query = target["expr"]
                yield (
                    f"{file.stem}: {panel['title']}{legend}",
                    dashboards.with_variables(query, SYSTEM_NAMESPACE, RATE_INTERVAL),
                )


def silent(what: str) -> dict[str, list[str]]:
    """Return the names of the `queries` or the `metrics` without data while one service on CPUs is
    healthy, by the state or the fault that gives them data.
    """
    found: dict[str, dict[str, list[str]]] = yaml.safe_load(SILENT.read_text())
    return found[what]


def differences_from_documents(series: list[Labels]) -> list[str]:
    """Return the differences between the names of scraped series and docs/metrics.md."""
    recorded = {
        rule["record"] for group in _groups() for rule in group["rules"] if "record" in rule
    }
    names = {it["__name__"] for it in series} - recorded - OF_PROMETHEUS
    names = {it for it in names if not it.endswith("_created")}
    rows = [row for table in tables().values() for row in table]
    known = {name for names in silent("metrics").values() for name in names}
    return [
        *(f"{name} is scraped and not in docs/metrics.md" for name in names if not rows_of(name)),
        *(
            f"{row.name} is in docs/metrics.md and not scraped"
            for row in rows
            if row.name not in known
            if not any(row.matches(name) or name in row.series for name in names)
        ),
        *(
            f"{name} is in e2e/silent.yaml and not in docs/metrics.md"
            for name in known - {row.name for row in rows}
        ),
    ]

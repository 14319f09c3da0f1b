"""Draws panels of the dashboards from the answers of a Prometheus that scrapes a loaded service.

`make pictures` runs it on a full local cluster, and writes docs/monitoring-*.svg. The load of the
service rises and falls again, so that autoscaling adds a replica and removes it.
"""

import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from chart_support import dashboards
from e2e_support import ROOT, Cluster
from faults import Scene
from monitoring import RATE_INTERVAL, SCRAPE_SECONDS, Prometheus, start_prometheus
from shared_support.waiting import eventually
from stage import SYSTEM_NAMESPACE, install_release

NAMESPACE = "default"
SERVICE = "chat"
SPEC = {
    "slo": {"ttftMilliseconds": 1000, "itlMilliseconds": 200},
    "engine": {"dtype": "Float32", "maxModelLen": 512, "batching": {"maxNumSeqs": 8}},
    "autoscaling": {"minReplicas": 1, "maxReplicas": 2},
    "router": {"enabled": True},
    "termination": {"drainTimeoutSeconds": 30},
}
PHASES = ((60.0, 1), (180.0, 12), (120.0, 1))
"""Duration in seconds of each phase of the load, and its number of clients."""

PICTURES: Mapping[str, Sequence[str]] = {
    "service": (
        *("Replicas", "Requests by route and status", "Demand"),
        *("Time to first token", "Inter-token latency", "Running and waiting requests"),
    ),
    "router": ("Requests by outcome", "Picks by reason", "First token: expected and real"),
    "operator": ("Passes", "Times of the queue", "Requests to the API server"),
}
"""Titles of the panels of each picture, by the dashboard."""
COLUMNS = 3
UNITS = {"s": "seconds", "reqps": "requests per second", "percent": "%", "short": ""}
STYLE: Any = {
    "font.size": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "pictures",
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(prometheus: Prometheus, began: float, ended: float) -> None:
    """Draw all pictures from what Prometheus knows about this time, in seconds since 1970."""
    for file in dashboards.FILES:
        if titles := PICTURES.get(file.stem):
            found = {panel["title"]: panel for panel in dashboards.panels(file)}
            _draw(file.stem, [found[title] for title in titles], prometheus, began, ended)


def _draw(
    name: str, panels: Sequence[Any], prometheus: Prometheus, began: float, ended: float
) -> None:
    rows = -(-len(panels) // COLUMNS)
    with plt.rc_context(STYLE):
        figure, places = plt.subplots(
            *(rows, COLUMNS), figsize=(10, 2.6 * rows), sharex=True, squeeze=False
        )
        for panel, place in zip(panels, places.flat, strict=True):
            _draw_panel(panel, place, prometheus, began, ended)
        for place in places[-1]:
            place.set_xlabel("minutes")
        figure.tight_layout()
        figure.savefig(ROOT / "docs" / f"monitoring-{name}.svg", metadata={"Date": None})
        plt.close(figure)


def _draw_panel(
    panel: Any, place: Axes, prometheus: Prometheus, began: float, ended: float
) -> None:
    place.set_title(panel["title"], loc="left", fontweight="bold")
    place.set_ylabel(UNITS[panel["fieldConfig"]["defaults"]["unit"]])
    for target in panel["targets"]:
        query = dashboards.with_variables(
            target["expr"], SYSTEM_NAMESPACE, RATE_INTERVAL, NAMESPACE, SERVICE
        )
        for series in prometheus.range(query, began, ended):
            points = [(float(at), float(value)) for at, value in series["values"]]
            minutes = [(at - began) / 60 for at, _ in points]
            place.plot(
                minutes,
                [value for _, value in points],
                label=_legend(target["legendFormat"], series["metric"]),
                linewidth=1.2,
            )
    place.set_ylim(bottom=0)
    place.set_xlim(0, (ended - began) / 60)
    if place.lines:
        place.legend(fontsize=6, frameon=False)


def _legend(template: str, labels: Mapping[str, str]) -> str:
    """Return the name of a series, as Grafana shows it."""
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), template)


def main() -> int:
    """Install the chart, serve the load, and draw the pictures."""
    cluster, local = Cluster(), os.environ["LOCALKUBE_NAME"]
    install_release(cluster, local)
    scene = Scene(cluster, local, NAMESPACE, SERVICE)
    scene.apply(SPEC)
    scene.wait_ready()
    eventually(scene.is_routed, within=300, every=1)
    with tempfile.TemporaryDirectory() as folder:
        prometheus = start_prometheus(local, Path(folder))
        time.sleep(4 * SCRAPE_SECONDS)
        began = time.time()
        for seconds, clients in PHASES:
            with scene.clients(clients):
                time.sleep(seconds)
        draw(prometheus, began, time.time())
    return 0


if __name__ == "__main__":
    sys.exit(main())

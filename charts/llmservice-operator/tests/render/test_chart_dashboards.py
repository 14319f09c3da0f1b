"""Tests the Grafana dashboards of the chart: their queries, their layout and their ConfigMaps."""

import json
import re
from pathlib import Path

import pytest
import yaml

from chart_support.dashboards import FILES, dashboard, panels, queries, with_variables
from chart_support.helm import REPOSITORY, Manifest, load_defaults, render
from chart_support.promtool import promtool
from chart_support.queries import unknown_labels, unknown_metrics
from shared_support.metric_table import labels_in, names_in


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_metrics_and_labels_of_every_panel_are_documented(file: Path) -> None:
    assert list(queries(file))
    for query in queries(file):
        assert names_in(query)
        assert unknown_metrics(query) | unknown_labels(query) == set(), query


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_legend_names_labels_of_its_query(file: Path) -> None:
    for panel in panels(file):
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            assert named <= labels_in(target["expr"]), target["expr"]


def test_prometheus_accepts_every_query(tmp_path: Path) -> None:
    found = (with_variables(query, "a", "5m") for file in FILES for query in queries(file))
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(found)]
    text = yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]})
    (tmp_path / "rules.yaml").write_text(text)
    promtool("check", "rules", "rules.yaml", folder=tmp_path)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_panel_says_what_it_shows_and_has_a_place_of_its_own(file: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard(file)["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(panel["title"] and panel["description"].endswith(".") for panel in panels(file))
    numbers = [panel["id"] for panel in dashboard(file)["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_each_dashboard_has_a_config_map_that_the_sidecar_of_grafana_loads() -> None:
    options = {"labels": {"load_me": "yes"}, "annotations": {"grafana_folder": "LLM"}}
    values = {"monitoring": {"enabled": True, "dashboards": options}}
    found: list[Manifest] = [it for it in render(values) if it["kind"] == "ConfigMap"]
    contents = {name: text for it in found for name, text in it["data"].items()}

    assert {file.name: dashboard(file) for file in FILES} == {
        name: json.loads(text) for name, text in contents.items()
    }
    for each in found:
        assert each["metadata"]["labels"]["load_me"] == "yes"
        assert each["metadata"]["annotations"] == {"grafana_folder": "LLM"}


def test_the_values_for_a_new_grafana_load_the_dashboards() -> None:
    values = yaml.safe_load((REPOSITORY / "charts/kube-prometheus-stack-values.yaml").read_text())
    sidecar = values["grafana"]["sidecar"]["dashboards"]

    assert load_defaults()["monitoring"]["dashboards"]["labels"] == {
        sidecar["label"]: sidecar["labelValue"]
    }
    assert load_defaults()["monitoring"]["namespace"] == "monitoring"


def test_the_dashboards_have_addresses_of_their_own_and_link_to_each_other() -> None:
    assert len({dashboard(file)["uid"] for file in FILES}) == len(FILES) == 4
    for file in FILES:
        (link,) = dashboard(file)["links"]
        assert link["tags"] == dashboard(file)["tags"] == ["llmservice"]

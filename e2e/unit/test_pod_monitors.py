"""Tests that the scrape configuration selects the pods and gives the labels of its PodMonitor."""

from pathlib import Path
from typing import Any

import pytest

from pod_monitors import scrape_config


def pod_monitor(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "chat", "namespace": "ml"},
        "spec": {
            "selector": {"matchLabels": {"app": "chat", "tier": "gpu"}},
            "podMetricsEndpoints": [{"port": "management", "interval": "15s"}],
            **spec,
        },
    }


def discovery(**spec: Any) -> Any:
    (found,) = scrape_config(pod_monitor(**spec), Path("/admin.conf"))["kubernetes_sd_configs"]
    return found


def test_the_pods_are_those_that_the_pod_monitor_selects() -> None:
    assert discovery() == {
        "role": "pod",
        "kubeconfig_file": "/admin.conf",
        "selectors": [{"role": "pod", "label": "app=chat,tier=gpu"}],
        "namespaces": {"names": ["ml"]},
    }


@pytest.mark.parametrize(
    ("selector", "namespaces"),
    [
        ({"any": True}, None),
        ({"matchNames": ["a", "b"]}, {"names": ["a", "b"]}),
        ({}, {"names": ["ml"]}),
    ],
)
def test_the_namespaces_are_those_of_the_selector(selector: Any, namespaces: Any) -> None:
    assert discovery(namespaceSelector=selector).get("namespaces") == namespaces


def test_relabelings_follow_the_labels_of_every_target_in_the_names_of_prometheus() -> None:
    relabeling = {"sourceLabels": ["a", "b"], "separator": "", "targetLabel": "llmservice"}
    endpoint = {"port": "management", "interval": "5s", "relabelings": [relabeling]}

    config = scrape_config(pod_monitor(podMetricsEndpoints=[endpoint]), Path("/admin.conf"))

    *others, last = config["relabel_configs"]
    assert last == {"source_labels": ["a", "b"], "separator": "", "target_label": "llmservice"}
    assert [each["target_label"] for each in others if "target_label" in each] == [
        *("namespace", "pod", "container", "job", "endpoint")
    ]
    assert config["scrape_interval"] == "5s"
    assert config["honor_labels"] is False


def test_a_target_is_a_port_of_a_pod_that_runs() -> None:
    config = scrape_config(pod_monitor(), Path("/admin.conf"))
    kept, dropped, *_ = config["relabel_configs"]
    assert (kept["action"], kept["regex"]) == ("keep", "management")
    assert (dropped["action"], dropped["regex"]) == ("drop", "(Failed|Succeeded)")


@pytest.mark.parametrize(
    "spec",
    [
        {"sampleLimit": 5},
        {"selector": {"matchExpressions": []}},
        {"podMetricsEndpoints": [{"port": "a", "interval": "5s", "path": "/other"}]},
    ],
)
def test_a_field_that_is_not_translated_is_an_error(spec: Any) -> None:
    with pytest.raises(ValueError, match="does not translate"):
        scrape_config(pod_monitor(**spec), Path("/admin.conf"))

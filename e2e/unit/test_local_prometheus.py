"""Tests what `make prometheus` prints, and which cluster and rules it uses."""

import shlex
from pathlib import Path

import pytest
import yaml

import local_prometheus
import monitoring
from local_prometheus import questions
from monitoring import Prometheus, start_prometheus

PROMETHEUS = Prometheus("http://10.200.0.1:19091", started=0.0)


@pytest.mark.parametrize(("name", "chosen"), [("llmservice", []), ("own", ["--name", "own"])])
def test_the_printed_commands_ask_prometheus_in_the_network_of_its_cluster(
    name: str, chosen: list[str]
) -> None:
    said, *commands = questions(PROMETHEUS, name)
    assert PROMETHEUS.url in said
    asked = [shlex.split(command) for command in commands]
    entered = [".venv/bin/localkube", *chosen, "exec", "--", "curl", "-s"]
    assert [each[: len(entered)] for each in asked] == [entered] * 3
    assert [each[len(entered)].removeprefix(PROMETHEUS.url) for each in asked] == [
        "/api/v1/targets",
        "/api/v1/alerts",
        "/api/v1/query",
    ]


def test_without_its_cluster_prometheus_is_not_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["local_prometheus.py", "--name", "no-such-cluster"])
    assert local_prometheus.main() == 1
    assert "no-such-cluster" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sooner", "waits"), [(1, ["600s", "7200s", None]), (10, ["60s", "720s", None])]
)
def test_alerts_fire_sooner_by_the_factor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sooner: int, waits: list[str | None]
) -> None:
    alerts = [{"alert": "A", "for": "10m"}, {"alert": "B", "for": "2h"}, {"alert": "C"}]
    rule = {"kind": "PrometheusRule", "spec": {"groups": [{"name": "all", "rules": alerts}]}}
    monitor = {
        "kind": "PodMonitor",
        "metadata": {"name": "services", "namespace": "system"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "podMetricsEndpoints": [{"port": "management", "interval": "5s"}],
        },
    }
    monkeypatch.setattr(monitoring, "_objects", lambda: [rule, monitor])
    started: list[tuple[str, ...]] = []

    def localkube(*arguments: str, capture: bool) -> str:
        started.append(arguments)
        return f"{PROMETHEUS.url}\n"

    monkeypatch.setattr(monitoring, "localkube", localkube)

    assert start_prometheus("own", tmp_path, sooner).url == PROMETHEUS.url

    config = tmp_path / "prometheus.yaml"
    assert started == [("prometheus", "start", "--config", str(config), "--name", "own")]
    (scraped,) = yaml.safe_load(config.read_text())["scrape_configs"]
    assert scraped["job_name"] == "podMonitor/system/services"
    (group,) = yaml.safe_load((tmp_path / "rules.yaml").read_text())["groups"]
    assert [each.get("for") for each in group["rules"]] == waits

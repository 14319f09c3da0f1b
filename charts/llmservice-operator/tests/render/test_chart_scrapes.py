"""Tests the scrape configurations for a Prometheus without its operator."""

from pathlib import Path

import yaml

from chart_support.helm import REPOSITORY, find, render
from chart_support.promtool import promtool
from pod_monitors import scrape_config

FILE = REPOSITORY / "charts" / "prometheus-scrape.yaml"


def test_the_scrape_configurations_are_those_of_the_pod_monitors(update_golden: bool) -> None:
    monitors = [
        it for it in render({"monitoring": {"enabled": True}}) if it["kind"] == "PodMonitor"
    ]
    wanted = {"scrape_configs": [scrape_config(it) for it in monitors]}
    if update_golden:
        comments = [line for line in FILE.read_text().splitlines() if line.startswith("#")]
        text = yaml.safe_dump(wanted, sort_keys=False, width=110)
        FILE.write_text("\n".join([*comments, text]))
    assert yaml.safe_load(FILE.read_text()) == wanted


def test_prometheus_accepts_the_scrape_configurations_and_the_spec_of_the_rules(
    tmp_path: Path,
) -> None:
    rule = find(render({"monitoring": {"enabled": True}}), "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    config = {**yaml.safe_load(FILE.read_text()), "rule_files": ["rules.yaml"]}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))

    # Without a token of a pod, only the syntax can be checked.
    promtool("check", "config", "--syntax-only", "prometheus.yaml", folder=tmp_path)
    promtool("check", "rules", "rules.yaml", folder=tmp_path)

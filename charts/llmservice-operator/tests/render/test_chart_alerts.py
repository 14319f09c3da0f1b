"""Tests the chart's alerts with promtool: each fires, ends, and has a runbook."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart_support.helm import REPOSITORY, find, render
from chart_support.promtool import promtool
from chart_support.queries import rules, unknown_labels, unknown_metrics
from chart_support.scraped_labels import NEVER_SCRAPED, cases, completed, names_in_cases, recorded
from shared_support.metric_table import names_in

CASES = cases()
RUNBOOKS = REPOSITORY / "docs" / "runbooks"
OF_ONE_NAMESPACE_OR_OF_ALL = (
    r" -n (NAMESPACE|llmservice-system) | --all-namespaces| (nodes|apiservice|cordon|\w+webhook)"
)
"""What a command of a runbook contains, so that it finds its objects."""


@cache
def groups() -> list[Any]:
    rule = find(render({"monitoring": {"enabled": True}}), "PrometheusRule")
    found: list[Any] = rule["spec"]["groups"]
    return found


def alerts() -> dict[str, Any]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def write_test(folder: Path, name: str, case: Any) -> str:
    """Write the test of an alert, and the rules that the alert needs; return the file of the test.

    The rules of all alerts would take promtool twenty times as long.
    """
    rule = alerts()[name]
    needed = names_in(rule["expr"])
    records = [it for it in rules() if it.get("record") in needed]
    group = {"name": name, "rules": [*records, rule]}
    (folder / f"{name}-rules.yaml").write_text(yaml.safe_dump({"groups": [group]}))
    fired = {
        "exp_labels": {**case["labels"], **rule["labels"]},
        "exp_annotations": {
            "summary": case["summary"],
            "description": case["description"],
            "runbook_url": rule["annotations"]["runbook_url"],
        },
    }
    interval = case.get("interval", "1m")
    expected: list[tuple[str, list[Any]]] = [
        (case["before"], []),
        (case["fires"], [fired]),
        (case["resolved"], []),
    ]
    test = {
        "interval": interval,
        "input_series": [
            {"series": completed(key), "values": it} for key, it in case["series"].items()
        ],
        "alert_rule_test": [
            {"eval_time": time, "alertname": name, "exp_alerts": those} for time, those in expected
        ],
    }
    file = {
        "rule_files": [f"{name}-rules.yaml"],
        "evaluation_interval": interval,
        "tests": [test],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(file))
    return f"{name}.yaml"


def test_each_alert_fires_and_ends(tmp_path: Path) -> None:
    files = [write_test(tmp_path, name, case) for name, case in CASES.items()]
    promtool("test", "rules", *files, folder=tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_the_values_of_a_series_are_quoted_where_yaml_reads_a_number(name: str) -> None:
    # YAML reads 0x30, which is 31 zeros for promtool, as 48.
    assert [it for it in CASES[name]["series"].values() if not isinstance(it, str)] == []


def test_the_series_of_the_tests_have_the_labels_of_a_real_scrape() -> None:
    assert recorded().keys() | NEVER_SCRAPED == names_in_cases()
    assert completed('llm_phase_age_seconds{namespace="ml",llmservice="chat",pod="a"}') == (
        'llm_phase_age_seconds{container="x",endpoint="x",instance="x",job="x",llmservice="chat",'
        'namespace="ml",pod="a"}'
    )
    with pytest.raises(AssertionError, match="has labels that no scraped series has"):
        completed('llm_phase_age_seconds{namespace="ml",name="chat"}')


def test_the_rules_are_valid(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups()}))
    promtool("check", "rules", "rules.yaml", folder=tmp_path)


def test_an_alert_that_does_not_fire_fails_its_test(tmp_path: Path) -> None:
    name = "LLMServiceDrainStuck"
    case = {**CASES[name], "fires": CASES[name]["before"]}
    file = write_test(tmp_path, name, case)
    with pytest.raises(AssertionError, match="FAILED"):
        promtool("test", "rules", file, folder=tmp_path)


def test_every_alert_has_a_case() -> None:
    assert set(CASES) == set(alerts())


def test_every_alert_has_a_runbook_that_its_link_leads_to() -> None:
    pages = {page.stem for page in RUNBOOKS.glob("LLMService*.md")}
    assert pages == set(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{name}.md")


@pytest.mark.parametrize("name", CASES)
def test_a_runbook_says_what_to_look_at_and_what_to_do(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert re.findall("^## (.*)$", text, re.M) == ["Symptom", "Look", "Do"]


@pytest.mark.parametrize("name", CASES)
def test_the_commands_of_a_runbook_can_be_typed(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    commands = re.findall(r"kubectl [^`\n|]+", text)
    assert [it for it in commands if not re.search(OF_ONE_NAMESPACE_OR_OF_ALL, it)] == []
    # The alert names the pod, or an earlier command or query lists the pods.
    before, used, _ = text.partition(" POD")
    assert not used or "pod" in CASES[name]["labels"] or re.search("get pods|by \\(pod", before)


def test_the_link_of_an_alert_begins_with_the_value_for_it() -> None:
    values = {"monitoring": {"enabled": True, "rules": {"runbooks": "https://wiki/llm/"}}}
    last = find(render(values), "PrometheusRule")["spec"]["groups"][-1]["rules"][0]
    assert last["annotations"]["runbook_url"] == f"https://wiki/llm/{last['alert']}.md"


def test_without_a_metrics_server_nothing_is_said_about_it() -> None:
    values = {"monitoring": {"enabled": True}, "metricsServer": {"enabled": False}}
    found = find(render(values), "PrometheusRule")["spec"]["groups"]
    assert "llmservice-metrics-server" not in [group["name"] for group in found]


def test_the_metrics_and_labels_of_every_rule_are_documented() -> None:
    for rule in rules():
        unknown = unknown_metrics(rule["expr"]) | unknown_labels(rule["expr"])
        assert unknown == set(), rule.get("alert") or rule["record"]


@pytest.mark.parametrize("name", CASES)
def test_the_metrics_and_labels_of_every_runbook_are_documented(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    for query in re.findall("^```promql\n(.*?)^```$", text, re.M | re.S):
        assert names_in(query)
        assert unknown_metrics(query) | unknown_labels(query) == set()


def test_the_metrics_and_labels_of_the_useful_queries_are_documented() -> None:
    _, _, text = (REPOSITORY / "docs" / "monitoring.md").read_text().partition("## Useful queries")
    queries = re.findall(r"^\| [^|]+ \| `(.+)` \|$", text.partition("\n## ")[0], re.M)
    assert len(queries) > 8
    for query in queries:
        assert unknown_metrics(query) | unknown_labels(query) == set(), query


def test_a_metric_or_label_that_no_process_has_is_found() -> None:
    query = "sum(rate(llm_requests_total[5m])) / llm_request_duration_seconds_count + llm_wrong"
    assert unknown_metrics(query) == {"llm_wrong"}
    assert unknown_labels('sum by (route, wrong) (llm_requests_total{status="200"})') == {"wrong"}

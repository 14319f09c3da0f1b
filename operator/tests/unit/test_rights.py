"""Tests that the chart grants exactly the rights that follow from the operator's code."""

from functools import reduce
from operator import getitem

import yaml

from llmservice_operator.children import CHILDREN
from llmservice_operator.rights import (
    METRICS_SERVER,
    METRICS_SERVER_PEERS,
    OPERATOR,
    OPERATOR_OF_METRICS_API,
    lease_rights,
    metrics_server_cluster_rights,
    operator_rules,
    render_chart_rules,
)
from llmservice_operator.settings import OperatorSettings
from operator_support.services import REPOSITORY

CHART_RULES = "charts/llmservice-operator/templates/_rules.tpl"


def test_the_rules_of_the_chart_are_the_generated_ones() -> None:
    committed = (REPOSITORY / CHART_RULES).read_text()
    assert committed == render_chart_rules(), (
        f"{CHART_RULES} is not what the code says: run `make generate` and review the difference"
    )


def test_every_child_brings_the_rights_on_its_kind() -> None:
    granted = {right.kind: {*right.verbs} for right in OPERATOR if not right.subresource}
    assert all({*child.verbs} <= granted[child.kind] for child in CHILDREN)


def test_a_right_that_a_chart_value_grants_exists_only_with_that_value() -> None:
    def resources(*, keda: bool) -> set[str]:
        rules = operator_rules(OperatorSettings(keda=keda))
        return {resource for rule in rules for resource in rule["resources"]}

    assert resources(keda=True) - resources(keda=False) == {"scaledobjects"}
    guard, _, rest = render_chart_rules().partition("{{- if .Values.keda.enabled }}\n")
    assert "scaledobjects" not in guard
    assert rest.startswith("- apiGroups: [keda.sh]\n  resources: [scaledobjects]\n")


def test_each_chart_value_that_grants_rights_is_off_or_on_by_default() -> None:
    values = yaml.safe_load((REPOSITORY / "charts/llmservice-operator/values.yaml").read_text())
    for right in OPERATOR:
        if right.grant is not None:
            found = reduce(getitem, right.grant.chart_value.split("."), values)
            assert isinstance(found, bool), right.grant.chart_value


def test_no_right_is_a_wildcard_or_reaches_a_secret() -> None:
    rights = [*OPERATOR, *OPERATOR_OF_METRICS_API, *METRICS_SERVER, *METRICS_SERVER_PEERS]
    rights += [*metrics_server_cluster_rights("role"), *lease_rights("lease")]
    assert not [each for each in rights if "*" in (each.kind.group, each.resource, *each.verbs)]
    assert not [each for each in rights if each.resource == "secrets"]

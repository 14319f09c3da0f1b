"""The rights that the chart may give: of the two processes by their code, of users as tables.

A right is more than a rule: it is one verb on one resource, so that two ways to write the same
rules compare equal.
"""

from chart_support.helm import Manifest
from llmservice_operator import rights
from llmservice_operator.settings import OperatorSettings

Right = tuple[str, str, str, str]
"""API group, resource, verb, and the one object's name or an empty string for all."""


def operator_rights(*, keda: bool = False) -> set[Right]:
    """What the operator may do in a namespace that it watches, by the declarations in its code."""
    return rights_of(rights.operator_rules(OperatorSettings(keda=keda)))


def metrics_server_rights() -> set[Right]:
    """What the metrics server may do there."""
    return rights_of(rights.rules(rights.METRICS_SERVER))


def metrics_server_cluster_rights(name: str) -> set[Right]:
    """What the metrics server may do besides where it serves external metrics."""
    return rights_of(rights.rules(rights.metrics_server_cluster_rights(name)))


def lease_rights(name: str) -> set[Right]:
    """What a process may do with Leases: make one, and lead by the one of this name."""
    return rights_of(rights.rules(rights.lease_rights(name)))


READ = {
    ("llmservice.dev", "llmservices"): "get list watch",
    ("llmservice.dev", "llmservices/status"): "get",
    ("llmservice.dev", "llmservices/scale"): "get",
}

WRITE = {
    ("llmservice.dev", "llmservices"): "create update patch delete deletecollection",
    ("llmservice.dev", "llmservices/scale"): "update patch",
}

TRUST: dict[tuple[str, str], str] = {("llmservice.dev", "llmservices"): "trust-remote-code"}
"""What the admission policy asks for where an LLMService has the code of a model run."""


def rights_of(rules: list[Manifest]) -> set[Right]:
    """Every right that these rules give."""
    return {
        (group, resource, verb, name)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames") or [""]
    }


def table(rows: dict[tuple[str, str], str]) -> set[Right]:
    """The rights of one of the tables above."""
    return {(*key, verb, "") for key, verbs in rows.items() for verb in verbs.split()}

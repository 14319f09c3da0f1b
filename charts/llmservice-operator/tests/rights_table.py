"""Lists the rights that the chart may grant.

The rights of the processes come from their code, and those of the users from tables.

A right is one verb on one resource. A rule may grant several rights, so two different lists of
rules that grant the same rights compare equal.
"""

from chart_support.helm import Manifest
from llmservice_operator import rights
from llmservice_operator.settings import OperatorSettings

Right = tuple[str, str, str, str]
"""API group, resource, verb, and the name of one object, which is empty for all objects."""


def operator_rights(*, keda: bool = False) -> set[Right]:
    """Return the operator's rights in a watched namespace, as declared in its code."""
    return rights_of(rights.operator_rules(OperatorSettings(keda=keda)))


def metrics_api_rights() -> set[Right]:
    """Return the operator's further rights if the release serves external metrics."""
    return rights_of(rights.rules(rights.OPERATOR_OF_METRICS_API))


def metrics_server_rights() -> set[Right]:
    """Return the metrics server's rights in a watched namespace."""
    return rights_of(rights.rules(rights.METRICS_SERVER))


def token_rights() -> set[Right]:
    """Return the metrics server's right in the cluster for checking the tokens of its callers."""
    return rights_of(rights.rules(rights.TOKEN_CHECKS))


def operator_lease_rights(name: str) -> set[Right]:
    """Return the metrics server's right on the operator's Lease."""
    return rights_of(rights.rules(rights.operator_lease_rights(name)))


def metrics_server_peer_rights() -> set[Right]:
    """Return the metrics server's rights in its own namespace."""
    return rights_of(rights.rules(rights.METRICS_SERVER_PEERS))


def metrics_server_cluster_rights(name: str) -> set[Right]:
    """Return the metrics server's further rights for serving external metrics."""
    return rights_of(rights.rules(rights.metrics_server_cluster_rights(name)))


def lease_rights(name: str) -> set[Right]:
    """Return a process's rights to create any Lease, and to use the Lease of this name."""
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
"""Right that the admission policy requires for an LLMService that runs the code of a model."""


def rights_of(rules: list[Manifest]) -> set[Right]:
    """Return every right that these rules grant."""
    return {
        (group, resource, verb, name)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames") or [""]
    }


def table(rows: dict[tuple[str, str], str]) -> set[Right]:
    """Return the rights of one of the tables above."""
    return {(*key, verb, "") for key, verbs in rows.items() for verb in verbs.split()}

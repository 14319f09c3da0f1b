"""The rights that the chart may give, as tables: as rendered and as the API server sees it.

A right is more than a rule: it is one verb on one resource, so that two ways to write the same
rules compare equal.
"""

from chart_support import Manifest

Right = tuple[str, str, str, str]
"""API group, resource, verb, and the one object's name or an empty string for all."""

OPERATOR = {
    ("llmservice.dev", "llmservices"): "get list watch",
    ("llmservice.dev", "llmservices/status"): "get patch",
    ("llmservice.dev", "llmservices/finalizers"): "update",
    ("apps", "deployments"): "get list watch create patch",
    ("", "services"): "get list watch create patch",
    ("", "persistentvolumeclaims"): "get list watch create patch",
    ("autoscaling", "horizontalpodautoscalers"): "get list watch create patch delete",
    ("policy", "poddisruptionbudgets"): "get list watch create patch",
    ("networking.k8s.io", "networkpolicies"): "get list watch create patch delete",
    ("", "pods"): "get list watch patch",
    ("", "events"): "create patch",
}

KEDA = {("keda.sh", "scaledobjects"): "get create patch delete"}
"""What the operator needs besides, where KEDA may scale."""

METRICS_SERVER = {
    ("llmservice.dev", "llmservices"): "get list watch",
    ("llmservice.dev", "llmservices/status"): "patch",
    ("", "pods"): "get list watch",
}


def metrics_server_cluster_rights(name: str) -> set[Right]:
    """What the metrics server may do besides where it serves external metrics."""
    apis, roles = "apiregistration.k8s.io", "rbac.authorization.k8s.io"
    by_name = ("get", "list", "watch", "update")
    return {
        ("authorization.k8s.io", "subjectaccessreviews", "create", ""),
        (apis, "apiservices", "create", ""),
        *((apis, "apiservices", verb, "v1beta1.external.metrics.k8s.io") for verb in by_name),
        (roles, "clusterroles", "get", name),
    }


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


def lease_rights(name: str) -> set[Right]:
    """What the operator may do with Leases: make one, and lead by the one of this name."""
    group, resource = "coordination.k8s.io", "leases"
    return {
        (group, resource, "create", ""),
        *((group, resource, verb, name) for verb in ("get", "update")),
    }

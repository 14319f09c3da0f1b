"""Lists the rights of the operator and the metrics server. The chart grants exactly these rights,
and one right through a Role of Kubernetes (see METRICS_SERVER).

The rights on children follow from the declarations of the children. The operator gets no right on
Secrets or on cluster-scoped objects, and no rule has a wildcard. If the operator watches a list of
namespaces, a Role in each of them has the same rules.

`render_chart_rules` writes the rules for the chart, so that the rights are declared only once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.children import CHILDREN, Grant
from llmservice_operator.kinds import (
    API_SERVICES,
    CLUSTER_ROLES,
    ENDPOINT_SLICES,
    EVENTS,
    LEASES,
    LLMSERVICES,
    PODS,
    REPLICA_SETS,
    SUBJECT_ACCESS_REVIEWS,
    TOKEN_REVIEWS,
    Kind,
)
from llmservice_operator.settings import OperatorSettings


@dataclass(frozen=True)
class Right:
    kind: Kind
    verbs: tuple[str, ...]
    subresource: str = ""
    resource_names: tuple[str, ...] = ()
    """Names of the objects that the right covers; empty covers all objects of the kind."""
    grant: Grant | None = None
    """Chart value on which the right depends; None if the right is always granted."""
    why: str = ""
    """Purpose of the right, if the verbs do not show it. It is a comment in the chart."""

    @property
    def resource(self) -> str:
        return "/".join(part for part in (self.kind.plural, self.subresource) if part)

    def as_rule(self) -> dict[str, Any]:
        """Return the rule of a Role or ClusterRole that grants this right."""
        rule: dict[str, Any] = {"apiGroups": [self.kind.group], "resources": [self.resource]}
        if self.resource_names:
            rule["resourceNames"] = list(self.resource_names)
        return {**rule, "verbs": list(self.verbs)}


_READ: Final = ("get", "list", "watch")


def _of_children() -> Iterator[Right]:
    """Yield one right for each kind of child, with the verbs that any of its declarations needs."""
    for kind in dict.fromkeys(child.kind for child in CHILDREN):
        declared = [child for child in CHILDREN if child.kind is kind]
        verbs = dict.fromkeys(verb for child in declared for verb in child.verbs)
        yield Right(kind, tuple(verbs), grant=declared[0].grant)


OPERATOR: Final = (
    Right(LLMSERVICES, _READ),
    Right(LLMSERVICES, ("patch",), "status"),
    Right(
        LLMSERVICES,
        ("update",),
        "finalizers",
        why="Owner references need it where OwnerReferencesPermissionEnforcement is on, as on"
        " OpenShift.",
    ),
    *_of_children(),
    Right(
        REPLICA_SETS,
        ("get",),
        why="The ReplicaSet of an earlier revision has the pods to which autoRollback returns.",
    ),
    Right(
        PODS,
        (*_READ, "patch"),
        why="The one write to a pod is its deletion cost: the emptiest goes first.",
    ),
    Right(
        EVENTS,
        ("create", "patch", "list"),
        why="The Events of a pod tell why a node does not start it.",
    ),
)
"""Rights of the operator in every namespace that it watches, or in the whole cluster."""

METRICS_SERVER: Final = (
    Right(LLMSERVICES, _READ),
    Right(LLMSERVICES, ("patch",), "status", why="What was learned about a service."),
    Right(PODS, _READ),
    Right(
        EVENTS, ("create", "patch"), why="A router refuses a request that has ended two replicas."
    ),
)
"""Rights of the metrics server in the same namespaces.

The metrics server also reads one ConfigMap. Kubernetes' own Role
kube-system/extension-apiserver-authentication-reader grants that right.
"""

OPERATOR_OF_METRICS_API: Final = (
    Right(
        API_SERVICES,
        ("get", "delete"),
        resource_names=(names.EXTERNAL_METRICS_API,),
        why="An APIService without a server would block every deletion of a namespace.",
    ),
)
"""Further rights of the operator if the release serves external metrics."""

TOKEN_CHECKS: Final = (
    Right(TOKEN_REVIEWS, ("create",), why="Is the token of a caller of the load reports valid?"),
)
"""Cluster-wide right of the metrics server, if it asks its callers for tokens."""

METRICS_SERVER_PEERS: Final = (
    Right(
        ENDPOINT_SLICES,
        ("list",),
        why="The Ready metrics servers, among which the services are shared.",
    ),
)
"""Rights of the metrics server in its own namespace."""

_NAMELESS: Final = "A create request carries no name that a rule could be limited to."


def metrics_server_cluster_rights(owner_role: str) -> tuple[Right, ...]:
    """Return the cluster-wide rights that the metrics server needs to serve external metrics.

    `owner_role` is the name of the ClusterRole that owns the APIService. Kubernetes deletes the
    APIService together with this ClusterRole.
    """
    return (
        Right(
            SUBJECT_ACCESS_REVIEWS,
            ("create",),
            why="May the user on whose behalf the API server asks read metrics?",
        ),
        Right(API_SERVICES, ("create",), why=_NAMELESS),
        Right(API_SERVICES, ("get", "update"), resource_names=(names.EXTERNAL_METRICS_API,)),
        Right(CLUSTER_ROLES, ("get",), resource_names=(owner_role,)),
    )


def lease_rights(lease_name: str) -> tuple[Right, ...]:
    """Return the rights of a process on its Lease, in the namespace of the process."""
    return (
        Right(LEASES, ("create",), why=_NAMELESS),
        Right(LEASES, ("get", "update"), resource_names=(lease_name,)),
    )


def operator_lease_rights(lease_name: str) -> tuple[Right, ...]:
    """Return the right of the metrics server on the operator's Lease, in its own namespace."""
    why = "Is the leading operator of a release that sends no token?"
    return (Right(LEASES, ("get",), resource_names=(lease_name,), why=why),)


def operator_rules(settings: OperatorSettings) -> list[dict[str, Any]]:
    """Return the rules of the operator in the watched namespaces, for the rights that the settings
    grant.
    """
    granted = (each for each in OPERATOR if each.grant is None or each.grant.is_given(settings))
    return rules(granted)


def rules(rights: Iterable[Right]) -> list[dict[str, Any]]:
    return [right.as_rule() for right in rights]


def render_chart_rules() -> str:
    """Return the chart's named templates of rules, and of the audience of tokens.

    A template whose rules need an object's name takes the name as its argument.
    """
    templates = {
        "rules": OPERATOR,
        "metricsApiRules": OPERATOR_OF_METRICS_API,
        "metricsServerRules": METRICS_SERVER,
        "metricsServerPeerRules": METRICS_SERVER_PEERS,
        "metricsServerClusterRules": metrics_server_cluster_rights("{{ . }}"),
        "leaseRules": lease_rights("{{ . }}"),
        "tokenRules": TOKEN_CHECKS,
        "operatorLeaseRules": operator_lease_rights("{{ . }}"),
    }
    lines = [
        "{{- /* Generated by `make generate`; do not edit. */}}",
        "",
        '{{- define "llmservice-operator.metricsServerAudience" -}}',
        names.METRICS_SERVER_AUDIENCE,
        "{{- end -}}",
    ]
    for name, rights in templates.items():
        lines += ["", f'{{{{- define "llmservice-operator.{name}" -}}}}']
        lines += [line for right in rights for line in _rule_lines(right)]
        lines += ["{{- end -}}"]
    return "\n".join([*lines, ""])


def _rule_lines(right: Right) -> Iterator[str]:
    if right.grant is not None:
        yield f"{{{{- if .Values.{right.grant.chart_value} }}}}"
    if right.why:
        yield f"# {right.why}"
    for number, (key, values) in enumerate(right.as_rule().items()):
        shown = ", ".join(value or '""' for value in values)
        yield f"{' ' if number else '-'} {key}: [{shown}]"
    if right.grant is not None:
        yield "{{- end }}"

"""Every right the operator needs, and no other: the chart grants exactly these.

| resource | verbs | why |
|---|---|---|
| llmservices | get, list, watch | the user's objects are read, never written |
| llmservices/status | get, patch | conditions, replicas, url, engine pin |
| llmservices/finalizers | update | blockOwnerDeletion in children, where that is guarded |
| deployments, services | get, list, watch, create, patch | children; garbage is collected |
| horizontalpodautoscalers, networkpolicies | the same and delete | the optional children |
| poddisruptionbudgets | get, list, watch, create, patch | a child as well |
| persistentvolumeclaims | get, list, watch, create, patch | the model cache; never deleted |
| pods | get, list, watch, patch | reasons for the status; deletion cost |
| scaledobjects, if asked for | get, create, patch, delete | the child that makes KEDA scale |
| events | create, patch | Events on the LLMService |
| leases, own namespace | create; get, update by name | leader election |

No Secret, no wildcard, nothing of cluster scope: with a list of watched namespaces the same rules
stand in a Role of each namespace.
"""

from dataclasses import dataclass
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.kinds import (
    API_SERVICES,
    AUTOSCALERS,
    CLAIMS,
    CLUSTER_ROLES,
    DEPLOYMENTS,
    EVENTS,
    LEASES,
    LLMSERVICES,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    SCALED_OBJECTS,
    SERVICES,
    SUBJECT_ACCESS_REVIEWS,
    Kind,
)


@dataclass(frozen=True)
class Right:
    kind: Kind
    verbs: tuple[str, ...]
    subresource: str = ""

    def as_rule(self, resource_names: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return the rule of a Role or ClusterRole that grants this right."""
        resource = "/".join(part for part in (self.kind.plural, self.subresource) if part)
        rule: dict[str, Any] = {
            "apiGroups": [self.kind.group],
            "resources": [resource],
            "verbs": list(self.verbs),
        }
        return {**rule, "resourceNames": list(resource_names)} if resource_names else rule


WATCHED_NAMESPACES: Final = (
    Right(LLMSERVICES, ("get", "list", "watch")),
    Right(LLMSERVICES, ("get", "patch"), "status"),
    Right(LLMSERVICES, ("update",), "finalizers"),
    Right(DEPLOYMENTS, ("get", "list", "watch", "create", "patch")),
    Right(SERVICES, ("get", "list", "watch", "create", "patch")),
    Right(AUTOSCALERS, ("get", "list", "watch", "create", "patch", "delete")),
    Right(POD_DISRUPTION_BUDGETS, ("get", "list", "watch", "create", "patch")),
    Right(NETWORK_POLICIES, ("get", "list", "watch", "create", "patch", "delete")),
    Right(CLAIMS, ("get", "list", "watch", "create", "patch")),
    Right(PODS, ("get", "list", "watch", "patch")),
    Right(EVENTS, ("create", "patch")),
)
"""Wanted in every namespace that is watched, or in the whole cluster."""


KEDA: Final = (Right(SCALED_OBJECTS, ("get", "create", "patch", "delete")),)
"""Wanted there too, where KEDA may scale; the kind is not watched, many clusters do not have it."""


def own_namespace_rules(lease_name: str) -> list[dict[str, Any]]:
    """Return the rules wanted in the operator's own namespace: its Lease, by name."""
    # RBAC cannot restrict `create` by name: the name is not known when it is asked.
    return [
        Right(LEASES, ("create",)).as_rule(),
        Right(LEASES, ("get", "update")).as_rule((lease_name,)),
    ]


def watched_namespaces_rules() -> list[dict[str, Any]]:
    return [right.as_rule() for right in WATCHED_NAMESPACES]


EXTERNAL_METRICS_API: Final = names.EXTERNAL_METRICS_API
"""The APIService that the metrics server keeps."""


@dataclass(frozen=True)
class MetricsServerRights:
    """Rules of the metrics server; besides, it reads one ConfigMap by Kubernetes' own Role
    kube-system/extension-apiserver-authentication-reader.
    """

    everywhere: list[dict[str, Any]]
    watched_namespaces: list[dict[str, Any]]
    """Those of `everywhere` that make sense in one namespace."""
    own_namespace: list[dict[str, Any]]


def metrics_server_rights(lease_name: str, owner_role: str) -> MetricsServerRights:
    """Return every right that the metrics server needs.

    | resource | verbs | why |
    |---|---|---|
    | llmservices, pods | get, list, watch | whom to ask |
    | llmservices/status | patch | what was learned |
    | subjectaccessreviews | create | may this user read metrics |
    | apiservices | create; get, list, watch, update by name | external.metrics.k8s.io |
    | clusterroles | get by name | the APIService is deleted with it |
    | leases, own namespace | create; get, update by name | one of two learns |
    """
    watched = [
        Right(LLMSERVICES, ("get", "list", "watch")).as_rule(),
        Right(LLMSERVICES, ("patch",), "status").as_rule(),
        Right(PODS, ("get", "list", "watch")).as_rule(),
    ]
    by_name = ("get", "list", "watch", "update")
    return MetricsServerRights(
        everywhere=[
            *watched,
            Right(SUBJECT_ACCESS_REVIEWS, ("create",)).as_rule(),
            Right(API_SERVICES, ("create",)).as_rule(),
            Right(API_SERVICES, by_name).as_rule((EXTERNAL_METRICS_API,)),
            Right(CLUSTER_ROLES, ("get",)).as_rule((owner_role,)),
        ],
        watched_namespaces=watched,
        own_namespace=own_namespace_rules(lease_name),
    )

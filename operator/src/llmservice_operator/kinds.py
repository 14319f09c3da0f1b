"""The kinds of objects that the operator reads or writes, with their paths on the API server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmservice_operator import api, names

_DECLARED: Final[dict[tuple[str, str], Kind]] = {}


@dataclass(frozen=True)
class Kind:
    """A kind of Kubernetes object. The constructor registers it for `kind_of`.

    Raises ValueError if the kind is declared already.
    """

    group: str
    version: str
    kind: str
    plural: str
    label_selector: str = ""
    """Selector of the objects of the kind that are listed and watched; empty selects all."""

    def __post_init__(self) -> None:
        if _DECLARED.setdefault((self.api_version, self.kind), self) is not self:
            raise ValueError(f"{self.kind} of {self.api_version} is declared already")

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def discovery_path(self) -> str:
        """The URL path of the list of all kinds of this group and version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """Return the URL path of the collection, of an object or of its subresource."""
        scope = f"/namespaces/{namespace}" if namespace else ""
        tail = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{self.discovery_path}{scope}/{self.plural}{tail}"


LLMSERVICES: Final = Kind(api.GROUP, api.VERSION, api.KIND, api.PLURAL)
DEPLOYMENTS: Final = Kind("apps", "v1", "Deployment", "deployments", names.CHILD_SELECTOR)
REPLICA_SETS: Final = Kind("apps", "v1", "ReplicaSet", "replicasets", names.CHILD_SELECTOR)
SERVICES: Final = Kind("", "v1", "Service", "services", names.CHILD_SELECTOR)
CLAIMS: Final = Kind(
    "", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", names.CHILD_SELECTOR
)
AUTOSCALERS: Final = Kind(
    "autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", names.CHILD_SELECTOR
)
SCALED_OBJECTS: Final = Kind(
    "keda.sh", "v1alpha1", "ScaledObject", "scaledobjects", names.CHILD_SELECTOR
)
PODS: Final = Kind("", "v1", "Pod", "pods", names.CHILD_SELECTOR)
POD_DISRUPTION_BUDGETS: Final = Kind(
    "policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", names.CHILD_SELECTOR
)
NETWORK_POLICIES: Final = Kind(
    "networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", names.CHILD_SELECTOR
)
HTTP_ROUTES: Final = Kind(
    "gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes", names.CHILD_SELECTOR
)
INFERENCE_POOLS: Final = Kind(
    "inference.networking.k8s.io", "v1", "InferencePool", "inferencepools", names.CHILD_SELECTOR
)
EVENTS: Final = Kind("", "v1", "Event", "events")
LEASES: Final = Kind("coordination.k8s.io", "v1", "Lease", "leases")
CONFIG_MAPS: Final = Kind("", "v1", "ConfigMap", "configmaps", names.CHILD_SELECTOR)
ENDPOINT_SLICES: Final = Kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
CLUSTER_ROLES: Final = Kind("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles")
API_SERVICES: Final = Kind("apiregistration.k8s.io", "v1", "APIService", "apiservices")
SUBJECT_ACCESS_REVIEWS: Final = Kind(
    "authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews"
)
TOKEN_REVIEWS: Final = Kind("authentication.k8s.io", "v1", "TokenReview", "tokenreviews")


def kind_of(manifest: Mapping[str, Any]) -> Kind:
    """Return the kind of a manifest. Raises KeyError if the kind is not declared."""
    return _DECLARED[manifest["apiVersion"], manifest["kind"]]

"""A tenant that changes the objects of its namespace in every way that the API server allows.

All random choices follow from a seed. A change that the API server refuses is skipped.
"""

import json
import random
import time
from collections.abc import Callable
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.kinds import AUTOSCALERS, LLMSERVICES, PODS, Kind
from operator_support.fault_flows import SERVED_KINDS, service_of, specs_with_every_child
from operator_support.processes import Api, ApiError, make_service
from operator_support.webhook import patched, refused

KINDS: Final = (*SERVED_KINDS, LLMSERVICES, PODS)
"""Kinds that the tenant disturbs. They include every kind of child that all clusters serve."""
FOREIGN: Final = "foreign"
"""Name of the objects of another owner, which the operator must not write."""
HANG_SECONDS: Final = 6.0
"""Delay of a webhook in seconds, within the API server's limit of ten seconds."""
_HOLD: Final = "example.com/hold"
_STRANGE: Final[tuple[Any, ...]] = ("", "0", "-1", "1e3", "1.5Gi", "é\u2028", "x" * 63, "null")
_DEAD_OWNER: Final = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "name": "somebody",
    "uid": "00000000-0000-0000-0000-000000000000",
    "controller": True,
}
_OWNERS: Final[tuple[list[dict[str, Any]], ...]] = ([], [_DEAD_OWNER])


class Tenant:
    """One seeded run in a namespace of its own."""

    def __init__(self, seed: int, namespace: str) -> None:
        self.seed = seed
        self.namespace = namespace
        self.webhook = "allow"
        """What the webhook currently does with a write."""
        self.done: list[str] = []
        self._draw = random.Random(seed)
        self._api = Api()
        self._quotas = 0

    def begin(self) -> None:
        """Make the services, and objects of another owner that look like the operator's."""
        for name, spec in specs_with_every_child().items():
            self._api.create(LLMSERVICES, service_of(name, self.namespace, spec))
        self._api.create(LLMSERVICES, make_service("plain", self.namespace))
        owner = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": FOREIGN}}
        made = self._api.request("POST", f"/api/v1/namespaces/{self.namespace}/configmaps", owner)
        uid = made["metadata"]["uid"]
        controller = {"kind": "ConfigMap", "apiVersion": "v1", "name": FOREIGN, "uid": uid}
        labels = {names.MANAGED_BY_LABEL: names.FIELD_MANAGER, names.SERVICE_LABEL: FOREIGN}
        metadata = {
            "name": FOREIGN,
            "namespace": self.namespace,
            "labels": labels,
            "ownerReferences": [{**controller, "controller": True}],
        }
        spec = {
            "maxReplicas": 2,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": FOREIGN},
        }
        manifest = {"apiVersion": AUTOSCALERS.api_version, "kind": AUTOSCALERS.kind, "spec": spec}
        self._api.create(AUTOSCALERS, {**manifest, "metadata": metadata})
        self._api.create(LLMSERVICES, make_service(FOREIGN, self.namespace, autoscaling=SCALED))

    def disturb(self, until: float) -> None:
        """Make one random change after another until `time.monotonic` reaches `until`."""
        while time.monotonic() < until:
            act = self._draw.choice(ACTS)
            try:
                said = act(self)
            except ApiError as error:
                said = f"refused: {error.status}"
            self.done.append(f"{act.__name__.strip('_')}: {said}")
            time.sleep(self._draw.uniform(0.05, 0.8))

    def review(self, live: dict[str, Any]) -> dict[str, Any]:
        """Return the response of the namespace's webhook to a write."""
        if str(live.get("kind")) in ("Event", "ReplicaSet"):
            return {}
        match self.webhook:
            case "refuse":
                return refused("not in this namespace")
            case "busy":
                status = {"code": 429, "message": "busy", "details": {"retryAfterSeconds": 200}}
                return {"allowed": False, "status": status}
            case "hang":
                time.sleep(HANG_SECONDS)
            case "rewrite":
                labels = live["metadata"].get("labels") or {}
                value = {**labels, names.SERVICE_LABEL: f"t{time.monotonic_ns()}"}
                return patched({"op": "add", "path": "/metadata/labels", "value": value})
        return {}

    def _live(self) -> tuple[Kind, dict[str, Any]]:
        kind = self._draw.choice(KINDS)
        found = [
            each
            for each in self._api.list_all(kind, self.namespace)
            if each["metadata"]["name"] != FOREIGN
        ]
        if not found:
            raise ApiError(404, kind.plural)
        return kind, self._draw.choice(found)

    def _merge(self, kind: Kind, live: dict[str, Any], change: dict[str, Any]) -> str:
        name = live["metadata"]["name"]
        self._api.patch(kind, self.namespace, name, change)
        return f"{kind.plural} {name} {json.dumps(change)[:150]}"

    def _edit(self) -> str:
        kind, live = self._live()
        content = "spec" if "spec" in live else "data"
        path: list[str] = []
        part: Any = live.get(content)
        while isinstance(part, dict) and part:
            path.append(self._draw.choice(sorted(part)))
            part = part[path[-1]]
        change: Any = self._other(part)
        for key in reversed(path):
            change = {key: change}
        return self._merge(kind, live, {content: change})

    def _other(self, value: Any) -> Any:
        if self._draw.random() < 0.2:
            return None
        match value:
            case bool():
                return not value
            case int():
                return value + self._draw.choice((-1, 1, 7))
            case str():
                return self._draw.choice((f"{value}x", *_STRANGE))
            case list():
                return value[1:] if self._draw.random() < 0.5 else [*value, *value[:1]]
        return None

    def _remove(self) -> str:
        kind, live = self._live()
        how = self._draw.choice(("Background", "Foreground", "Orphan"))
        self._api.delete(kind, self.namespace, live["metadata"]["name"], propagationPolicy=how)
        return f"{kind.plural} {live['metadata']['name']} {how}"

    def _relabel(self) -> str:
        kind, live = self._live()
        label = self._draw.choice(sorted(live["metadata"].get("labels") or {"x": ""}))
        value = self._draw.choice((None, "other", "plain"))
        return self._merge(kind, live, {"metadata": {"labels": {label: value}}})

    def _disown(self) -> str:
        kind, live = self._live()
        owners = self._draw.choice(_OWNERS)
        return self._merge(kind, live, {"metadata": {"ownerReferences": owners}})

    def _annotate(self) -> str:
        kind, live = self._live()
        found = sorted(live["metadata"].get("annotations") or {})
        value = self._draw.choice((None, *_STRANGE, "é" * 2000))
        annotation = self._draw.choice((*found, "example.com/note"))
        return self._merge(kind, live, {"metadata": {"annotations": {annotation: value}}})

    def _own_fields(self) -> str:
        kind, live = self._live()
        deep: dict[str, Any] = {}
        for _ in range(self._draw.choice((1, 50, 200))):
            deep = {"f:a": deep}
        manager = self._draw.choice((names.FIELD_MANAGER, "", "x"))
        entry = {"manager": manager, "operation": "Apply", "apiVersion": kind.api_version}
        entries = (
            [{}]
            if self._draw.random() < 0.5
            else [
                {
                    **entry,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": deep,
                    "time": "2020-01-01T00:00:00Z",
                }
            ]
        )
        return self._merge(kind, live, {"metadata": {"managedFields": entries}})

    def _hold(self) -> str:
        kind, live = self._live()
        has_it = _HOLD in live["metadata"].get("finalizers", [])
        return self._merge(kind, live, {"metadata": {"finalizers": None if has_it else [_HOLD]}})

    def _recreate(self) -> str:
        kind, live = self._live()
        kept = ("name", "namespace", "labels", "annotations", "ownerReferences")
        metadata = {key: value for key, value in live["metadata"].items() if key in kept}
        if self._draw.random() < 0.5:
            metadata["ownerReferences"] = self._draw.choice(_OWNERS)
        self._api.delete(kind, self.namespace, metadata["name"])
        self._api.create(kind, {**live, "metadata": metadata, "status": {}})
        return f"{kind.plural} {metadata['name']}"

    def _report(self) -> str:
        live = self._draw.choice(self._api.list_all(LLMSERVICES, self.namespace))
        name: str = live["metadata"]["name"]
        change: dict[str, Any] | None = self._draw.choice((None, {"conditions": []}))
        self._api.patch(LLMSERVICES, self.namespace, name, {"status": change}, "status")
        return name

    def _restrict(self) -> str:
        self._quotas += 1
        kind, spec = self._draw.choice(_RESTRICTIONS)
        manifest = {"metadata": {"name": f"q{self._quotas}"}, "spec": spec}
        self._api.request("POST", self._path(kind), manifest)
        return json.dumps(manifest)

    def _allow(self) -> str:
        for kind in ("ResourceQuota", "LimitRange"):
            self._api.request("DELETE", self._path(kind))
        return ""

    def _path(self, kind: str) -> str:
        return f"/api/v1/namespaces/{self.namespace}/{kind.lower()}s"

    def _admit(self) -> str:
        self.webhook = self._draw.choice(("allow", "rewrite", "refuse", "busy", "hang"))
        return self.webhook


SCALED: Final = {
    "maxReplicas": 3,
    "provider": "External",
    "metric": "RequestsWaiting",
    "targetRequestsWaiting": 2,
}
_RESTRICTIONS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("ResourceQuota", {"hard": {"count/deployments.apps": "0"}}),
    ("ResourceQuota", {"hard": {"services": "0"}}),
    ("ResourceQuota", {"hard": {"persistentvolumeclaims": "0", "requests.storage": "1"}}),
    ("ResourceQuota", {"hard": {"count/networkpolicies.networking.k8s.io": "1"}}),
    ("ResourceQuota", {"hard": {"pods": "1", "limits.memory": "1Gi"}}),
    ("ResourceQuota", {"hard": {"requests.cpu": "1e-3"}}),
    ("LimitRange", {"limits": [{"type": "Container", "max": {"cpu": "1m"}}]}),
    ("LimitRange", {"limits": [{"type": "PersistentVolumeClaim", "max": {"storage": "1Ki"}}]}),
    ("LimitRange", {"limits": [{"type": "Container", "default": {"memory": "1.5Gi"}}]}),
)
Act = Callable[[Tenant], str]
ACTS: Final[tuple[Act, ...]] = (
    *3 * (Tenant._edit, Tenant._remove, Tenant._relabel, Tenant._disown),
    *2 * (Tenant._annotate, Tenant._own_fields, Tenant._recreate),
    Tenant._hold,
    Tenant._report,
    Tenant._restrict,
    Tenant._allow,
    Tenant._admit,
)

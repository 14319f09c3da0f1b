"""A cluster in memory: what a pass over one service reads there and writes to it."""

import itertools
from collections.abc import AsyncIterator
from typing import Any, cast

from llmservice_operator import names
from llmservice_operator.children import REQUIRED_KINDS, optional_kinds
from llmservice_operator.cluster import Cache, Cluster, EventRecorder, ServedKinds
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES, Kind, kind_of
from llmservice_operator.load_report_client import LoadReportClient
from llmservice_operator.reconcile import Reconciler
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.telemetry import Metrics
from operator_support.services import NOW, as_live


class RacingCluster:
    """Stores what is applied; another client may change an object just before a write lands."""

    def __init__(self) -> None:
        self.objects: dict[tuple[Kind, str], dict[str, Any]] = {}
        self.writes: list[str] = []
        self._versions = itertools.count(100)
        self.changes: dict[str, dict[str, Any]] = {}
        """Spec that somebody else writes right before our next write to the kind."""
        self.unserved: set[Kind] = set()

    def put(self, manifest: dict[str, Any]) -> dict[str, Any]:
        kind, metadata = kind_of(manifest), manifest["metadata"]
        version = str(next(self._versions))
        stored = {
            **manifest,
            "metadata": {"uid": metadata["name"], **metadata, "resourceVersion": version},
        }
        self.objects[kind, metadata["name"]] = stored
        return stored

    async def read(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        return self.objects.get((kind, name))

    async def list_resources(self, discovery_path: str) -> frozenset[str]:
        kinds = (*REQUIRED_KINDS, *optional_kinds(OperatorSettings()))
        served = (kind for kind in kinds if kind not in self.unserved)
        return frozenset(k.plural for k in served if k.discovery_path == discovery_path)

    async def list_all(
        self, kind: Kind, namespace: str | None, limit: int = 500
    ) -> AsyncIterator[dict[str, Any]]:
        for (found, _), manifest in list(self.objects.items()):
            if found is kind:
                yield manifest

    async def apply(
        self, manifest: dict[str, Any], uid: str | None = None, manager: str = names.FIELD_MANAGER
    ) -> dict[str, Any]:
        self.writes.append(manifest["kind"])
        known = self.objects.get((kind_of(manifest), manifest["metadata"]["name"]), {})
        if manager != names.FIELD_MANAGER:
            return self.put({**known, "spec": {**known["spec"], **manifest["spec"]}})
        stored = {**as_live(manifest), "status": known.get("status", {})}
        if kind_of(manifest) is DEPLOYMENTS and known:
            # What another manager owns stays.
            stored["spec"] = {"replicas": known["spec"]["replicas"], **stored["spec"]}
        return self.put(stored)

    async def delete(self, live: dict[str, Any]) -> None:
        self.writes.append(f"delete {live['kind']}")
        del self.objects[kind_of(live), live["metadata"]["name"]]

    async def apply_status(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.writes.append("status")
        live = self.objects[LLMSERVICES, manifest["metadata"]["name"]]
        if spec := self.changes.pop("LLMService", None):
            generation = live["metadata"]["generation"] + 1
            live = {
                **live,
                "spec": spec,
                "metadata": {**live["metadata"], "generation": generation},
            }
        owned = {
            "manager": names.FIELD_MANAGER,
            "operation": "Apply",
            "subresource": "status",
            "fieldsV1": {"f:status": {}},
        }
        metadata = {**live["metadata"], "managedFields": [owned]}
        return self.put({**live, "metadata": metadata, "status": manifest["status"]})

    async def write(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


def served_kinds(cluster: Any, settings: OperatorSettings) -> ServedKinds:
    """Return what the operator knows about the kinds before it has looked for them."""
    optional = optional_kinds(settings)
    return ServedKinds(cast(Cluster, cluster), [None], REQUIRED_KINDS, optional)


def a_reconciler(
    cluster: Any,
    cache: Cache,
    settings: OperatorSettings,
    served: ServedKinds | None = None,
    reports: LoadReportClient | None = None,
) -> Reconciler:
    """Return what makes passes in this cluster, at a time that stands still."""
    typed = cast(Cluster, cluster)
    return Reconciler(
        typed,
        cache,
        served or served_kinds(cluster, settings),
        EventRecorder(typed, "test", lambda: NOW),
        Metrics(),
        settings,
        lambda: NOW,
        reports or LoadReportClient(None),
    )

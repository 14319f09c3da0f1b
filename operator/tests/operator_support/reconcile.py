"""A cluster in memory, which a pass over one service reads and writes."""

import copy
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import Any, cast

from llmservice_operator import names
from llmservice_operator.api.wake import Wake
from llmservice_operator.children import REQUIRED_KINDS, optional_kinds
from llmservice_operator.cluster import Cache, Cluster, EventRecorder, ServedKinds
from llmservice_operator.desired.comparison import owns_field
from llmservice_operator.errors import ClusterError, Conflict
from llmservice_operator.kinds import DEPLOYMENTS, EVENTS, LLMSERVICES, Kind, kind_of
from llmservice_operator.load_report_client import LoadReportClient
from llmservice_operator.reconcile import Reconciler
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.telemetry import Metrics
from operator_support.services import NOW, as_live

KEY = ("team", "llama")
"""Namespace and name of the service in these tests."""


class RacingCluster:
    """Stores applied objects. Another client may change an object just before a write."""

    def __init__(self) -> None:
        self.objects: dict[tuple[Kind, str], dict[str, Any]] = {}
        self.writes: list[str] = []
        self.read_kinds: list[Kind] = []
        self._versions = itertools.count(100)
        self.changes: dict[str, dict[str, Any]] = {}
        """By kind, the new spec that another client writes right before the next write of the
        status. The only kind is LLMService."""
        self.unserved: set[Kind] = set()
        self.events: dict[str, list[dict[str, Any]]] = {}
        """Events by the uid of the object that they are about."""
        self.told: list[tuple[str, str]] = []
        """Type and reason of every Event that the operator created."""
        self.refusals: dict[Kind, Exception] = {}
        """Mapping from a kind to the error that a write of such an object raises."""
        self.refuse_other_uids = False
        """True if an apply to an object that was recreated is a conflict, as in a cluster."""
        self.webhook: Callable[[dict[str, Any]], None] = lambda _: None
        """Changes an applied object, as a mutating webhook does."""

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
        self.read_kinds.append(kind)
        return self.objects.get((kind, name))

    async def list_resources(self, discovery_path: str) -> frozenset[str]:
        kinds = (*REQUIRED_KINDS, *optional_kinds(OperatorSettings()))
        served = (kind for kind in kinds if kind not in self.unserved)
        return frozenset(k.plural for k in served if k.discovery_path == discovery_path)

    async def list_about(self, kind: Kind, namespace: str, uid: str) -> list[dict[str, Any]]:
        return self.events.get(uid, [])

    async def list_all(
        self, kind: Kind, namespace: str | None, limit: int = 500
    ) -> AsyncIterator[dict[str, Any]]:
        for (found, _), manifest in list(self.objects.items()):
            if found is kind:
                yield manifest

    async def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if (kind_of(manifest), manifest["metadata"]["name"]) in self.objects:
            self.writes.append(manifest["kind"])
            raise Conflict("there is an object of this name", 409)
        return await self.apply(manifest)

    async def apply(
        self, manifest: dict[str, Any], uid: str | None = None, manager: str = names.FIELD_MANAGER
    ) -> dict[str, Any]:
        kind = kind_of(manifest)
        self.writes.append(manifest["kind"])
        if kind in self.refusals:
            raise self.refusals[kind]
        known = self.objects.get((kind, manifest["metadata"]["name"]), {})
        if self.refuse_other_uids and uid not in (None, known["metadata"]["uid"]):
            raise Conflict("the object was made anew", 409)
        if manager != names.FIELD_MANAGER:
            taken = {**known, "spec": {**known["spec"], **manifest["spec"]}}
            return self.put(_without_our_replicas(taken))
        stored = {**as_live(manifest), "status": known.get("status", {})}
        self.webhook(stored)
        if kind is DEPLOYMENTS and known:
            # A field of another manager stays. A field that only the operator owned, and that it
            # now leaves out, gets its default.
            is_left_out = owns_field(known, "spec", "replicas")
            replicas = 1 if is_left_out else known["spec"]["replicas"]
            stored["spec"] = {"replicas": replicas, **stored["spec"]}
        return known if _same(stored, known) else self.put(stored)

    async def delete(self, live: dict[str, Any]) -> None:
        self.writes.append(f"delete {live['kind']}")
        if kind_of(live) in self.refusals:
            raise self.refusals[kind_of(live)]
        del self.objects[kind_of(live), live["metadata"]["name"]]

    async def apply_status(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.writes.append("status")
        if LLMSERVICES in self.refusals:
            raise self.refusals[LLMSERVICES]
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

    async def write(self, method: str, path: str, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        if method == "POST" and body.get("kind") == EVENTS.kind:
            self.told.append((body["type"], body["reason"]))
        return {}


def _same(stored: dict[str, Any], known: dict[str, Any]) -> bool:
    """Return whether a write changes nothing, so that the API server keeps the version."""
    if not known:
        return False
    metadata = {"uid": known["metadata"]["uid"], **stored["metadata"]}
    version = known["metadata"]["resourceVersion"]
    return {**stored, "metadata": {**metadata, "resourceVersion": version}} == known


def _without_our_replicas(live: dict[str, Any]) -> dict[str, Any]:
    """Return the workload after another manager has set its number of replicas."""
    live = copy.deepcopy(live)
    for entry in live["metadata"]["managedFields"]:
        entry["fieldsV1"].get("f:spec", {}).pop("f:replicas", None)
    return live


def served_kinds(cluster: Any, settings: OperatorSettings) -> ServedKinds:
    """Return the served kinds as the operator knows them before its first discovery."""
    optional = optional_kinds(settings)
    return ServedKinds(cast(Cluster, cluster), [None], REQUIRED_KINDS, optional)


def changed_service(
    cluster: RacingCluster, name: str, spec: Mapping[str, Any], **identity: str
) -> dict[str, Any]:
    """Return the service after a user has set its spec, with the next generation.

    `spec` is added to a minimal spec. `identity` is the further metadata of a new service.
    """
    live = cluster.objects.get((LLMSERVICES, name), {})
    metadata = live.get("metadata", {"name": name, "namespace": "team", **identity})
    minimal = {"model": {"uri": "hf://org/model"}, "accelerator": {"type": "cpu"}}
    return {
        **live,
        "apiVersion": LLMSERVICES.api_version,
        "kind": LLMSERVICES.kind,
        "metadata": {**metadata, "generation": metadata.get("generation", 0) + 1},
        "spec": {**minimal, **spec},
    }


def a_reconciler(
    cluster: Any,
    cache: Cache,
    settings: OperatorSettings,
    served: ServedKinds | None = None,
    reports: LoadReportClient | None = None,
    on_problem: Callable[[str | None], None] = lambda _: None,
    now: Callable[[], datetime] = lambda: NOW,
    read_wake: Callable[[str, str], Wake | None] = lambda _, __: None,
) -> Reconciler:
    """Return a reconciler for this cluster. By default, its clock stands still."""
    typed = cast(Cluster, cluster)
    return Reconciler(
        typed,
        cache,
        served or served_kinds(cluster, settings),
        EventRecorder(typed, "test", lambda: NOW),
        Metrics(),
        settings,
        now,
        reports or LoadReportClient(None),
        on_problem,
        read_wake,
    )


class OneService:
    """A cluster with one service, and the operator's passes over it."""

    def __init__(self, **spec: Any) -> None:
        self.cluster, self.cache = RacingCluster(), Cache()
        self.problems: list[str | None] = []
        """Problems that the operator reported as the cause of incomplete statuses."""
        self.reconciler = a_reconciler(
            self.cluster, self.cache, OperatorSettings(), on_problem=self.problems.append
        )
        self.see(
            {
                "apiVersion": LLMSERVICES.api_version,
                "kind": LLMSERVICES.kind,
                "metadata": {"name": KEY[1], "namespace": KEY[0], "generation": 1},
                "spec": {
                    "model": {"uri": "hf://org/model"},
                    "accelerator": {"type": "cpu"},
                    **spec,
                },
            }
        )

    def see(self, manifest: dict[str, Any]) -> None:
        """Store an object and let the watch report it."""
        self.cache.observe(self.cluster.put(manifest))

    def change(self, **spec: Any) -> None:
        """Change the spec of the service."""
        body = self.cluster.objects[LLMSERVICES, KEY[1]]
        generation = body["metadata"]["generation"] + 1
        metadata = {**body["metadata"], "generation": generation}
        self.see({**body, "metadata": metadata, "spec": {**body["spec"], **spec}})

    def is_rolled_out(self) -> None:
        """Do what the Deployment's controller does once its one replica is ready."""
        live = self.cluster.objects[DEPLOYMENTS, KEY[1]]
        counts = ("replicas", "updatedReplicas", "readyReplicas")
        self.see({**live, "status": {each: 1 for each in counts}})

    async def settle(self) -> float | None:
        """Reconcile until nothing is left to write; return the seconds until the next pass."""
        for _ in range(10):
            try:
                again = await self.reconciler.reconcile(KEY)
            except ClusterError:
                # The work queue would retry the pass.
                again = 0.0
            if again != 0.0:
                return again
        return 0.0

    def has(self, kind: Kind) -> bool:
        return (kind, KEY[1]) in self.cluster.objects

    def condition(self, type_: str) -> dict[str, Any]:
        conditions = self.cluster.objects[LLMSERVICES, KEY[1]]["status"]["conditions"]
        found: dict[str, Any]
        (found,) = (each for each in conditions if each["type"] == type_)
        return found

"""A cluster in memory with one service, and the operator's passes over it."""

from collections.abc import AsyncIterator
from typing import Any, cast

from llmservice_operator import names
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.api.wake import Wake
from llmservice_operator.cluster import Cache, Cluster
from llmservice_operator.errors import ClusterError, Forbidden
from llmservice_operator.kinds import (
    AUTOSCALERS,
    DEPLOYMENTS,
    LLMSERVICES,
    SCALED_OBJECTS,
    Kind,
    kind_of,
)
from llmservice_operator.load_report_client import LoadReportClient
from llmservice_operator.settings import OperatorSettings
from operator_support.reconcile import (
    RacingCluster,
    a_reconciler,
    changed_service,
    served_kinds,
)
from operator_support.services import NOW

KEY = ("team", "llama")


class KedaCluster(RacingCluster):
    """A cluster with KEDA. Its webhook refuses a ScaledObject for a workload that an HPA scales."""

    def __init__(self) -> None:
        super().__init__()
        self.has_rights = True
        self.knows_fallback_behavior = True

    async def read(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        self._check_rights(kind)
        return await super().read(kind, namespace, name)

    async def list_all(
        self, kind: Kind, namespace: str | None, limit: int = 500
    ) -> AsyncIterator[dict[str, Any]]:
        self._check_rights(kind)
        async for manifest in super().list_all(kind, namespace, limit):
            yield manifest

    async def apply(
        self, manifest: dict[str, Any], uid: str | None = None, manager: str = names.FIELD_MANAGER
    ) -> dict[str, Any]:
        kind = kind_of(manifest)
        self._check_rights(kind)
        if kind is SCALED_OBJECTS and (AUTOSCALERS, "llama") in self.objects:
            raise Forbidden("the workload 'llama' is already managed by the hpa 'llama'", 403)
        if kind is SCALED_OBJECTS and not self.knows_fallback_behavior:
            raise ClusterError(".spec.fallback.behavior: field not declared in schema", 500)
        return await super().apply(manifest, uid, manager)

    def _check_rights(self, kind: Kind) -> None:
        if kind is SCALED_OBJECTS and not self.has_rights:
            raise Forbidden('cannot get resource "scaledobjects"', 403)


class _Reports:
    """The operator's client of a metrics server that reports what the test says."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def read(self, _: str, __: str) -> LoadReport | None:
        return self._world.report


class World:
    """A cluster with one service, and the operator's passes over it."""

    def __init__(self) -> None:
        self.cluster = KedaCluster()
        self.cache = Cache()
        self.now = NOW
        """Time of the operator's clock."""
        self.report: LoadReport | None = None
        """Report of the metrics server about the service; None while there is none."""
        self.wake: Wake | None = None
        """Requests that wait for the service while it has no replicas."""
        self.restart(keda=True)

    def restart(self, *, keda: bool, **others: Any) -> None:
        """Replace the operator by one with these settings."""
        cluster, settings = cast(Cluster, self.cluster), OperatorSettings(keda=keda, **others)
        self.cluster.has_rights = keda
        self.served = served_kinds(cluster, settings)
        self._reconciler = a_reconciler(
            cluster,
            self.cache,
            settings,
            self.served,
            cast(LoadReportClient, _Reports(self)),
            now=lambda: self.now,
            read_wake=lambda _, __: self.wake,
        )

    async def reconcile(self) -> float | None:
        """Run one pass; return the seconds until the next pass."""
        return await self._reconciler.reconcile(KEY)

    async def settle(self) -> float | None:
        """Reconcile until nothing is left to write; return the seconds until the next pass."""
        await self.served.refresh()
        for _ in range(10):
            again = await self.reconcile()
            if again != 0.0:
                return again
        raise AssertionError("a pass always finds something to write")

    async def serve(self, uid: str = "first", **spec: Any) -> None:
        """Create the service, or change its spec, and let the operator reconcile it."""
        self.see(changed_service(self.cluster, "llama", spec, uid=uid))
        self.cluster.writes.clear()
        await self.settle()

    def see(self, manifest: dict[str, Any]) -> None:
        """Store an object and let the watch report it."""
        self.cache.observe(self.cluster.put(manifest))

    def lose(self, kind: Kind, name: str = "llama") -> None:
        """Delete an object. If its kind is watched, let the watch report the deletion."""
        if kind in self.served:
            self.cache.drop(self.cluster.put(self.cluster.objects[kind, name]))
        del self.cluster.objects[kind, name]

    def scale(self, replicas: int) -> None:
        """Change the number of replicas, as an autoscaler does."""
        live = self.cluster.objects[DEPLOYMENTS, "llama"]
        self.see({**live, "spec": {**live["spec"], "replicas": replicas}})

    def keda_makes_its_hpa(self) -> None:
        scaled_object = self.cluster.objects[SCALED_OBJECTS, "llama"]
        controller = {
            "apiVersion": SCALED_OBJECTS.api_version,
            "kind": SCALED_OBJECTS.kind,
            "name": "llama",
            "uid": "uid-of-keda",
            "controller": True,
        }
        metadata = {
            "name": "keda-hpa-llama",
            "namespace": "team",
            "labels": scaled_object["metadata"]["labels"],
            "ownerReferences": [controller],
        }
        self.see(
            {
                "apiVersion": AUTOSCALERS.api_version,
                "kind": AUTOSCALERS.kind,
                "metadata": metadata,
                "spec": {},
            }
        )

    def has(self, kind: Kind) -> bool:
        return (kind, "llama") in self.cluster.objects

    @property
    def replicas(self) -> int:
        found: int = self.cluster.objects[DEPLOYMENTS, "llama"]["spec"]["replicas"]
        return found

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.objects[LLMSERVICES, "llama"]["status"]
        return found

    def condition(self, type_: str) -> dict[str, Any]:
        found: dict[str, Any]
        (found,) = (each for each in self.status["conditions"] if each["type"] == type_)
        return found


def by(provider: str, **autoscaling: Any) -> dict[str, Any]:
    return {"autoscaling": {"maxReplicas": 4, "provider": provider, **autoscaling}}

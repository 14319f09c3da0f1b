"""Who scales a service from one pass to the next: made, restored, exchanged, removed."""

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from llmservice_operator import names
from llmservice_operator.api.reasons import Reason
from llmservice_operator.cluster import Cache, Cluster
from llmservice_operator.errors import ClusterError, Forbidden
from llmservice_operator.kinds import (
    AUTOSCALERS,
    DEPLOYMENTS,
    LLMSERVICES,
    POD_DISRUPTION_BUDGETS,
    SCALED_OBJECTS,
    SERVICES,
    Kind,
    kind_of,
)
from llmservice_operator.reconcile import WAIT_FOR_COLLECTOR_SECONDS
from llmservice_operator.settings import OperatorSettings
from operator_support.reconcile import RacingCluster, a_reconciler, served_kinds

KEY = ("team", "llama")


class KedaCluster(RacingCluster):
    """A cluster with KEDA, whose webhook takes no Deployment that an HPA scales already."""

    def __init__(self) -> None:
        super().__init__()
        self.has_rights = True
        self.reads: list[Kind] = []
        self.knows_fallback_behavior = True

    async def read(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        self._check_rights(kind)
        self.reads.append(kind)
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


class World:
    """A cluster with one service, and the operator's passes over it."""

    def __init__(self) -> None:
        self.cluster = KedaCluster()
        self.cache = Cache()
        self.restart(keda=True)

    def restart(self, *, keda: bool) -> None:
        cluster, settings = cast(Cluster, self.cluster), OperatorSettings(keda=keda)
        self.cluster.has_rights = keda
        self.served = served_kinds(cluster, settings)
        self._reconciler = a_reconciler(cluster, self.cache, settings, self.served)

    async def settle(self) -> float | None:
        """Pass until there is nothing to write; return when to look again."""
        await self.served.refresh()
        for _ in range(10):
            again = await self._reconciler.reconcile(KEY)
            if again != 0.0:
                return again
        raise AssertionError("a pass always finds something to write")

    async def serve(self, uid: str = "first", **spec: Any) -> None:
        """Create the service, or change its spec, and let the operator follow."""
        live = self.cluster.objects.get((LLMSERVICES, "llama"), {})
        metadata = live.get("metadata", {"name": "llama", "namespace": "team", "uid": uid})
        generation = metadata.get("generation", 0) + 1
        self.see(
            {
                **live,
                "apiVersion": LLMSERVICES.api_version,
                "kind": LLMSERVICES.kind,
                "metadata": {**metadata, "generation": generation},
                "spec": {
                    "model": {"uri": "hf://org/model"},
                    "accelerator": {"type": "cpu"},
                    **spec,
                },
            }
        )
        self.cluster.writes.clear()
        await self.settle()

    def see(self, manifest: dict[str, Any]) -> None:
        """Store an object and let the watch tell of it."""
        self.cache.observe(self.cluster.put(manifest))

    def lose(self, kind: Kind, name: str = "llama") -> None:
        """Delete an object and let the watch, if its kind is watched, report it."""
        if kind in self.served:
            self.cache.drop(self.cluster.put(self.cluster.objects[kind, name]))
        del self.cluster.objects[kind, name]

    def scale(self, replicas: int) -> None:
        """Do what an autoscaler does."""
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


@pytest.fixture
def world() -> World:
    return World()


def by(provider: str, **autoscaling: Any) -> dict[str, Any]:
    return {"autoscaling": {"maxReplicas": 4, "provider": provider, **autoscaling}}


def edited(scaled_object: dict[str, Any]) -> dict[str, Any]:
    return {**scaled_object, "spec": {**scaled_object["spec"], "maxReplicaCount": 99}}


async def test_a_scaled_object_that_somebody_deleted_or_edited_is_restored(world: World) -> None:
    await world.serve(**by("KEDA"))
    wanted = world.cluster.objects[SCALED_OBJECTS, "llama"]
    world.lose(SCALED_OBJECTS)
    await world.settle()
    assert world.cluster.objects[SCALED_OBJECTS, "llama"]["spec"] == wanted["spec"]

    world.see(edited(wanted))
    await world.settle()
    assert world.cluster.objects[SCALED_OBJECTS, "llama"]["spec"] == wanted["spec"]
    world.cluster.writes.clear()
    await world.settle()
    assert world.cluster.writes == []


async def test_keda_scales_again_after_a_pause(world: World) -> None:
    await world.serve(**by("KEDA"))
    await world.serve(**by("KEDA", mode="Paused"))
    assert not world.has(SCALED_OBJECTS)
    await world.serve(**by("KEDA"))
    assert world.has(SCALED_OBJECTS)


async def test_a_service_that_was_created_again_gets_a_scaled_object_of_its_own(
    world: World,
) -> None:
    await world.serve(**by("KEDA"))
    old = world.cluster.objects[SCALED_OBJECTS, "llama"]
    for kind, name in list(world.cluster.objects):
        world.lose(kind, name)

    # KEDA's finalizer keeps the old one a little longer.
    world.cluster.put(old)
    await world.serve(uid="second", **by("KEDA"))
    assert await world.settle() == WAIT_FOR_COLLECTOR_SECONDS
    del world.cluster.objects[SCALED_OBJECTS, "llama"]
    await world.settle()
    (owner,) = world.cluster.objects[SCALED_OBJECTS, "llama"]["metadata"]["ownerReferences"]
    assert owner["uid"] == "second"
    assert world.has(POD_DISRUPTION_BUDGETS)
    assert world.status["autoscaling"]["provider"] == "KEDA"


async def test_a_suspended_service_has_no_scaled_object_and_resumes_with_its_replicas(
    world: World,
) -> None:
    await world.serve(**by("KEDA"))
    world.scale(3)
    await world.settle()
    await world.serve(**by("KEDA"), suspend=True)
    assert not world.has(SCALED_OBJECTS)
    assert world.replicas == 0
    # KEDA would lift it again between the two.
    assert world.cluster.writes.index("delete ScaledObject") < world.cluster.writes.index(
        "Deployment"
    )

    await world.serve(**by("KEDA"))
    assert world.has(SCALED_OBJECTS)
    assert world.replicas == 3


@pytest.mark.parametrize(
    ("before", "after"),
    [("External", "KEDA"), ("KEDA", "External"), ("KEDA", "Direct")],
)
async def test_who_scaled_before_is_removed_first_and_no_replica_is_lost(
    world: World, before: str, after: str
) -> None:
    kinds = {"External": AUTOSCALERS, "KEDA": SCALED_OBJECTS}
    await world.serve(**by(before))
    world.scale(3)
    await world.settle()
    await world.serve(**by(after))
    present = {kind for kind in kinds.values() if world.has(kind)}
    assert present == ({kinds[after]} if after in kinds else set())
    if before in kinds and after in kinds:
        writes = world.cluster.writes
        assert writes.index(f"delete {kinds[before].kind}") < writes.index(kinds[after].kind)
    assert world.replicas == 3
    assert world.status["autoscaling"]["provider"] == after


def take_the_name(world: World) -> dict[str, Any]:
    """Give the name of the Service object to somebody else."""
    theirs = {"name": "llama", "namespace": "team", "uid": "theirs", "labels": {}}
    world.lose(SERVICES)
    world.see({"apiVersion": "v1", "kind": "Service", "metadata": theirs, "spec": {}})
    return {}


def write_a_wrong_flag(_: World) -> dict[str, Any]:
    return {"engine": {"extraArgs": ["--no-such-flag=1"]}}


@pytest.mark.parametrize("hinder", [take_the_name, write_a_wrong_flag])
async def test_a_pass_that_fails_leaves_no_scaled_object_behind(
    world: World, hinder: Callable[[World], dict[str, Any]]
) -> None:
    await world.serve(**by("KEDA"))
    spec = hinder(world)
    await world.serve(**by("Direct"), **spec)
    assert world.condition("Ready")["reason"] in ("NameConflict", "InvalidSpec")
    await world.serve(**by("Direct"))
    assert not world.has(SCALED_OBJECTS)


async def test_without_rights_nobody_scales_beside_keda_until_its_scaled_object_is_gone(
    world: World,
) -> None:
    await world.serve(**by("KEDA"))
    world.keda_makes_its_hpa()
    world.restart(keda=False)
    await world.serve(**by("External"), podDisruptionBudget={"maxUnavailable": 1})
    told = world.condition("AutoscalingActive")
    assert (told["status"], told["reason"]) == ("False", "KEDAMissing")
    assert "Run `kubectl delete scaledobject llama -n team`" in told["message"]
    assert not world.has(AUTOSCALERS)
    # Everything else goes on.
    budget = world.cluster.objects[POD_DISRUPTION_BUDGETS, "llama"]
    assert budget["spec"]["maxUnavailable"] == 1

    world.lose(AUTOSCALERS, "keda-hpa-llama")
    await world.settle()
    assert world.has(AUTOSCALERS)
    assert world.status["autoscaling"]["provider"] == "External"


async def test_without_rights_a_service_with_fixed_replicas_says_that_keda_scales_it(
    world: World,
) -> None:
    await world.serve(**by("KEDA"))
    world.keda_makes_its_hpa()
    world.restart(keda=False)
    await world.serve(replicas=2)
    assert world.condition("Ready")["reason"] == "KEDAMissing"
    assert "kubectl delete scaledobject llama" in world.condition("Ready")["message"]
    assert world.replicas == 2
    world.lose(AUTOSCALERS, "keda-hpa-llama")
    await world.settle()
    assert world.condition("Ready")["reason"] != "KEDAMissing"


async def test_without_rights_and_without_a_trace_of_keda_a_service_works_on(world: World) -> None:
    await world.serve(**by("Auto"))
    body = world.cluster.objects[LLMSERVICES, "llama"]
    status = {**body["status"], "autoscaling": {"provider": "KEDA"}}
    world.see({**body, "status": status})
    world.restart(keda=False)
    await world.settle()
    assert world.status["autoscaling"]["provider"] == "External"


async def test_a_right_that_is_missing_hinders_only_a_service_that_keda_is_to_scale(
    world: World,
) -> None:
    world.cluster.has_rights = False
    await world.serve(replicas=2)
    assert world.replicas == 2
    assert world.condition("Ready")["reason"] != "KEDAMissing"
    await world.serve(**by("KEDA"))
    said = world.condition("AutoscalingActive")
    assert (said["status"], said["reason"]) == ("False", "KEDAMissing")
    assert said["message"].endswith(f"{Reason.KEDA_MISSING.meaning} {Reason.KEDA_MISSING.hint}")


async def test_keda_scales_as_soon_as_it_is_installed_and_is_missed_when_it_is_removed(
    world: World,
) -> None:
    world.cluster.unserved = {SCALED_OBJECTS}
    await world.serve(**by("KEDA"))
    assert not world.has(SCALED_OBJECTS)
    assert world.condition("AutoscalingActive")["reason"] == "KEDAMissing"

    world.cluster.unserved = set()
    await world.settle()
    assert world.has(SCALED_OBJECTS)
    assert world.condition("AutoscalingActive")["reason"] != "KEDAMissing"

    world.lose(SCALED_OBJECTS)
    world.cluster.unserved = {SCALED_OBJECTS}
    await world.settle()
    assert not world.has(SCALED_OBJECTS)
    assert world.condition("AutoscalingActive")["reason"] == "KEDAMissing"


async def test_a_scaled_object_is_left_alone_while_its_kind_cannot_be_used(world: World) -> None:
    await world.serve(**by("KEDA"))
    world.cluster.unserved = {SCALED_OBJECTS}
    await world.settle()
    assert world.has(SCALED_OBJECTS)
    assert world.condition("AutoscalingActive")["reason"] == "KEDAMissing"
    world.cluster.unserved = set()
    world.cluster.writes.clear()
    await world.settle()
    assert set(world.cluster.writes) == {"status"}


async def test_a_scaled_object_is_read_from_the_cache(world: World) -> None:
    await world.serve(**by("KEDA"))
    world.cluster.reads.clear()
    await world.settle()
    assert SCALED_OBJECTS not in world.cluster.reads


async def test_a_keda_that_is_too_old_is_named_with_the_version_that_is_needed(
    world: World,
) -> None:
    world.cluster.knows_fallback_behavior = False
    await world.serve(**by("KEDA"))
    assert world.condition("Ready")["message"] == (
        "spec.autoscaling.provider: needs KEDA 2.17 or newer: upgrade KEDA, or choose Direct"
    )

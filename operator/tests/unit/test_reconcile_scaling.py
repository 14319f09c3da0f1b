"""Tests that the scaler of a service is made, restored, exchanged and removed between passes."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from llmservice_operator.api.reasons import Reason
from llmservice_operator.errors import Rejected
from llmservice_operator.kinds import (
    AUTOSCALERS,
    LLMSERVICES,
    POD_DISRUPTION_BUDGETS,
    SCALED_OBJECTS,
    SERVICES,
)
from llmservice_operator.reconcile import WAIT_FOR_COLLECTOR_SECONDS
from operator_support.world import World, by


@pytest.fixture
def world() -> World:
    return World()


def edited(scaled_object: dict[str, Any]) -> dict[str, Any]:
    return {**scaled_object, "spec": {**scaled_object["spec"], "maxReplicaCount": 99}}


async def test_a_scaled_object_that_was_deleted_or_edited_is_restored(world: World) -> None:
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

    # KEDA's finalizer keeps the old ScaledObject for some time.
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
    # In the other order, KEDA would scale the Deployment up again between the two writes.
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
async def test_the_previous_scaler_is_removed_first_and_no_replica_is_lost(
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


def drop_the_tolerance(stored: dict[str, Any]) -> None:
    """Do what an API server between 1.33 and 1.34 does."""
    if stored["kind"] == AUTOSCALERS.kind:
        behavior = {
            direction: {key: value for key, value in rules.items() if key != "tolerance"}
            for direction, rules in stored["spec"]["behavior"].items()
        }
        stored["spec"] = {**stored["spec"], "behavior": behavior}


def has_tolerance(world: World) -> bool:
    spec = world.cluster.objects[AUTOSCALERS, "llama"]["spec"]
    return "tolerance" in spec["behavior"]["scaleUp"]


async def test_the_tolerance_of_an_hpa_comes_back_within_an_hour_of_an_upgrade(
    world: World,
) -> None:
    world.cluster.webhook = drop_the_tolerance
    await world.serve(**by("External"))
    assert not has_tolerance(world)
    world.cluster.webhook = lambda _: None
    world.now += timedelta(minutes=59)
    await world.settle()
    assert not has_tolerance(world)
    world.now += timedelta(minutes=1)
    await world.settle()
    assert has_tolerance(world)


async def test_a_tolerance_that_is_dropped_again_is_sent_and_withdrawn_once_an_hour(
    world: World,
) -> None:
    world.cluster.webhook = drop_the_tolerance
    await world.serve(**by("External"))
    # The status tells once that no load report comes.
    world.now += timedelta(hours=1)
    await world.settle()
    world.cluster.writes.clear()
    for _ in range(2):
        world.now += timedelta(hours=1)
        for _ in range(10):
            await world.settle()
    assert world.cluster.writes == [AUTOSCALERS.kind] * 4
    assert not has_tolerance(world)


async def test_an_api_server_that_refuses_the_tolerance_keeps_the_rest_of_the_hpa(
    world: World,
) -> None:
    def refuse_the_tolerance(stored: dict[str, Any]) -> None:
        if stored["kind"] == AUTOSCALERS.kind and "tolerance" in str(stored["spec"]):
            raise Rejected(".spec.behavior.scaleUp.tolerance: field not declared in schema", 422)

    world.cluster.webhook = refuse_the_tolerance
    await world.serve(**by("External"))
    world.now += timedelta(hours=1)
    live = world.cluster.objects[AUTOSCALERS, "llama"]
    world.see({**live, "spec": {**live["spec"], "maxReplicas": 99}})
    await world.settle()
    assert world.cluster.objects[AUTOSCALERS, "llama"]["spec"] == live["spec"]
    assert not has_tolerance(world)


@pytest.mark.parametrize(
    ("direction", "edit"),
    [
        ("scaleUp", {"selectPolicy": "Disabled"}),
        ("scaleUp", {"tolerance": "100m"}),
        ("scaleDown", {"tolerance": "100m"}),
        ("scaleDown", {"policies": [{"type": "Pods", "value": 9, "periodSeconds": 15}]}),
        ("scaleUp", {"stabilizationWindowSeconds": 600}),
    ],
)
async def test_an_edited_behavior_of_an_hpa_is_restored(
    world: World, direction: str, edit: dict[str, Any]
) -> None:
    await world.serve(**by("External"))
    live = world.cluster.objects[AUTOSCALERS, "llama"]
    behavior = live["spec"]["behavior"]
    edited_rules = {**behavior, direction: {**behavior[direction], **edit}}
    world.see({**live, "spec": {**live["spec"], "behavior": edited_rules}})
    await world.settle()
    assert world.cluster.objects[AUTOSCALERS, "llama"]["spec"] == live["spec"]


def take_the_name(world: World) -> dict[str, Any]:
    """Give the name of the Service object to an object of another owner."""
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


async def test_without_rights_nothing_else_scales_until_the_scaled_object_is_gone(
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
    # Everything else continues.
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


async def test_without_rights_and_without_a_trace_of_keda_a_service_still_works(
    world: World,
) -> None:
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


async def test_keda_scales_as_soon_as_it_is_installed_and_is_reported_missing_after_removal(
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
    world.cluster.read_kinds.clear()
    await world.settle()
    assert SCALED_OBJECTS not in world.cluster.read_kinds


async def test_a_keda_that_is_too_old_is_named_with_the_version_that_is_needed(
    world: World,
) -> None:
    world.cluster.knows_fallback_behavior = False
    await world.serve(**by("KEDA"))
    assert world.condition("Ready")["message"] == (
        "spec.autoscaling.provider: needs KEDA 2.17 or newer: upgrade KEDA, or choose Direct"
    )

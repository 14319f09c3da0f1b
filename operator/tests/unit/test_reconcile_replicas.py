"""Tests that a service keeps its number of replicas and its engine.

The service is suspended, loses its status, or is deleted without its children.
"""

from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES
from operator_support.world import World, by

PROVIDERS = ("External", "KEDA")
"""Providers that let a component other than the operator set the number of replicas."""


@pytest.fixture
def world() -> World:
    return World()


async def run_three(world: World, **autoscaling: Any) -> dict[str, Any]:
    """Serve an autoscaled service with three replicas; return its spec."""
    spec = by(autoscaling.pop("provider", "External"), **autoscaling)
    await world.serve(**spec)
    world.scale(3)
    await world.settle()
    return spec


def lose_status(world: World) -> None:
    body = world.cluster.objects[LLMSERVICES, "llama"]
    world.see({key: value for key, value in body.items() if key != "status"})


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_service_whose_autoscaling_is_removed_while_it_is_suspended_resumes_as_before(
    world: World, provider: str
) -> None:
    spec = await run_three(world, provider=provider)
    await world.serve(**spec, suspend=True)
    assert world.replicas == 0
    await world.serve(suspend=True)
    assert world.replicas == 0
    await world.serve()
    assert world.replicas == 3
    await world.settle()
    assert world.replicas == 3


async def test_a_service_that_resumes_and_loses_autoscaling_at_once_resumes_as_before(
    world: World,
) -> None:
    spec = await run_three(world)
    await world.serve(**spec, suspend=True)
    await world.serve()
    assert world.replicas == 3


@pytest.mark.parametrize("mode", ["Active", "Recommend", "Paused"])
async def test_a_suspension_remembers_the_replicas_that_ran_and_not_the_recommended_ones(
    world: World, mode: str
) -> None:
    spec = await run_three(world, mode=mode)
    body = world.cluster.objects[LLMSERVICES, "llama"]
    scaling = {**body["status"]["autoscaling"], "desiredReplicas": 1}
    world.see({**body, "status": {**body["status"], "autoscaling": scaling}})
    await world.serve(**spec, suspend=True)
    assert world.replicas == 0
    await world.serve(**spec)
    assert world.replicas == 3


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_suspended_service_that_lost_its_status_resumes_as_before(
    world: World, provider: str
) -> None:
    spec = await run_three(world, provider=provider)
    await world.serve(**spec, suspend=True)
    lose_status(world)
    await world.settle()
    await world.serve(**spec)
    assert world.replicas == 3


async def test_a_number_that_autoscaling_left_behind_outlives_a_suspension(world: World) -> None:
    await run_three(world)
    await world.serve()
    assert world.replicas == 3
    await world.serve(suspend=True)
    await world.serve()
    assert world.replicas == 3


async def test_autoscaling_that_is_added_while_suspended_starts_with_the_previous_number(
    world: World,
) -> None:
    await run_three(world)
    await world.serve()
    await world.serve(suspend=True)
    await world.serve(**by("External"), suspend=True)
    await world.serve(**by("External"))
    assert world.replicas == 3


async def test_a_service_resumes_within_new_limits(world: World) -> None:
    spec = await run_three(world)
    await world.serve(**spec, suspend=True)
    await world.serve(**by("External", maxReplicas=2))
    assert world.replicas == 2


@pytest.mark.parametrize("recorded", ["0", "-1", "many", "", "²", "9999999999"])
async def test_a_record_that_is_no_number_of_replicas_is_ignored(
    world: World, recorded: str
) -> None:
    await world.serve()
    live = world.cluster.objects[DEPLOYMENTS, "llama"]
    annotations = {**live["metadata"]["annotations"], names.KEPT_REPLICAS_ANNOTATION: recorded}
    world.see({**live, "metadata": {**live["metadata"], "annotations": annotations}})
    await world.settle()
    assert world.replicas == 1


async def test_the_previous_number_is_recorded_only_if_it_has_not_changed_meanwhile(
    world: World,
) -> None:
    spec = await run_three(world)
    sent = []
    apply = world.cluster.apply

    async def spy(manifest: dict[str, Any], *arguments: Any, **named: Any) -> dict[str, Any]:
        sent.append(manifest)
        return await apply(manifest, *arguments, **named)

    world.cluster.apply = spy  # type: ignore[method-assign]
    read = world.cluster.objects[DEPLOYMENTS, "llama"]["metadata"]["resourceVersion"]
    await world.serve(**spec, suspend=True)
    (suspending,) = (each for each in sent if each["kind"] == "Deployment")
    assert suspending["metadata"]["resourceVersion"] == read


async def test_a_fixed_number_needs_no_record(world: World) -> None:
    await world.serve(replicas=2)
    await world.serve(replicas=2, suspend=True)
    annotations = world.cluster.objects[DEPLOYMENTS, "llama"]["metadata"]["annotations"]
    assert names.KEPT_REPLICAS_ANNOTATION not in annotations
    await world.serve(replicas=2)
    assert world.replicas == 2


def orphan(world: World, image: str | None = None, **annotations: str) -> None:
    """Delete the service with `--cascade=orphan`; its children stay."""
    if image is not None:
        live = world.cluster.objects[DEPLOYMENTS, "llama"]
        live["spec"]["template"]["spec"]["containers"][0]["image"] = image
        metadata = live["metadata"]
        metadata["annotations"] = {**metadata["annotations"], **annotations}
    world.lose(LLMSERVICES)
    for live in list(world.cluster.objects.values()):
        metadata = {key: it for key, it in live["metadata"].items() if key != "ownerReferences"}
        world.see({**live, "metadata": metadata})


@pytest.mark.parametrize("provider", [*PROVIDERS, "Direct"])
@pytest.mark.parametrize(
    "before", [{"replicas": 3}, by("External"), by("KEDA")], ids=["fixed", "External", "KEDA"]
)
async def test_an_orphan_that_is_adopted_with_autoscaling_keeps_its_replicas(
    world: World, provider: str, before: dict[str, Any]
) -> None:
    await world.serve(**before)
    world.scale(3)
    await world.settle()
    orphan(world)
    await world.settle()
    await world.serve(uid="second", **by(provider))
    assert world.replicas == 3
    (owner,) = world.cluster.objects[DEPLOYMENTS, "llama"]["metadata"]["ownerReferences"]
    assert owner["uid"] == "second"


@pytest.mark.parametrize("number", [2, 3])
async def test_an_orphan_that_is_adopted_without_a_number_keeps_its_replicas(
    world: World, number: int
) -> None:
    await run_three(world)
    world.scale(number)
    orphan(world)
    await world.serve(uid="second")
    assert world.replicas == number
    await world.settle()
    assert world.replicas == number


async def test_a_suspended_orphan_that_is_adopted_resumes_as_before(world: World) -> None:
    spec = await run_three(world)
    await world.serve(**spec, suspend=True)
    orphan(world)
    await world.serve(uid="second", **spec)
    assert world.replicas == 3


async def test_an_orphan_that_is_adopted_with_a_number_gets_that_number(world: World) -> None:
    await run_three(world)
    orphan(world)
    await world.serve(uid="second", replicas=2)
    assert world.replicas == 2


async def test_an_orphan_that_is_adopted_keeps_its_image(world: World) -> None:
    await world.serve()
    orphan(world, "registry/cpu:of-before", **{names.ENGINE_VERSION_ANNOTATION: "0.32.0"})
    await world.serve(uid="second")
    assert world.status["engine"]["image"] == "registry/cpu:of-before"
    pod = world.cluster.objects[DEPLOYMENTS, "llama"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry/cpu:of-before"

"""Tests that pods stay unchanged if the spec cannot be built, while all else follows the spec."""

import copy
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.api.server_defaults import Proxy, ServerDefaults
from llmservice_operator.desired.applied import applied_field
from llmservice_operator.kinds import (
    AUTOSCALERS,
    DEPLOYMENTS,
    LLMSERVICES,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
)
from operator_support.examples import GOLDEN, objects_in
from operator_support.services import as_live
from operator_support.world import World, by

UNBUILDABLE: dict[str, dict[str, Any]] = {
    "a wrong flag": {"engine": {"extraArgs": ["--no-such-flag=1"]}},
    "a version that no image holds": {"engine": {"version": "0.31.0"}},
    "an accelerator class that is gone": {"accelerator": {"class": "gone"}},
    "an engine that this operator does not know": {},
}


@pytest.fixture
def world() -> World:
    return World()


def template(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.cluster.objects[DEPLOYMENTS, "llama"]["spec"]["template"]
    return copy.deepcopy(found)


def pin_unknown_engine(world: World) -> None:
    """Store the status that a newer operator leaves after a rollback to this version."""
    body = world.cluster.objects[LLMSERVICES, "llama"]
    engine = {"image": "registry/cpu:newer", "version": "0.99.0", "defaultFor": "cpu"}
    world.see({**body, "status": {**body["status"], "engine": engine}})


async def serve_unbuildable(world: World, case: str, **spec: Any) -> None:
    if not UNBUILDABLE[case]:
        pin_unknown_engine(world)
    await world.serve(**{**spec, **UNBUILDABLE[case]})


@pytest.mark.parametrize("case", UNBUILDABLE)
async def test_pods_that_cannot_be_built_stay_and_everything_else_follows_the_spec(
    world: World, case: str
) -> None:
    await world.serve(replicas=1)
    before = template(world)
    await serve_unbuildable(
        world,
        case,
        replicas=3,
        rolloutStrategy={"type": "Recreate"},
        networkPolicy={"enabled": False},
        podDisruptionBudget={"maxUnavailable": 2},
    )
    live = world.cluster.objects[DEPLOYMENTS, "llama"]
    assert live["spec"]["replicas"] == 3
    assert live["spec"]["strategy"] == {"type": "Recreate"}
    assert template(world) == before
    assert not world.has(NETWORK_POLICIES)
    budget = world.cluster.objects[POD_DISRUPTION_BUDGETS, "llama"]
    assert budget["spec"]["maxUnavailable"] == 2
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "InvalidSpec")
    world.cluster.writes.clear()
    await world.settle()
    assert world.cluster.writes == []


@pytest.mark.parametrize("case", UNBUILDABLE)
async def test_a_service_whose_pods_cannot_be_built_is_suspended_scaled_and_resumed(
    world: World, case: str
) -> None:
    await world.serve(**by("External"))
    world.scale(3)
    await world.settle()
    before = template(world)
    await serve_unbuildable(world, case, **by("External"), suspend=True)
    assert world.replicas == 0
    await serve_unbuildable(world, case, **by("External", maxReplicas=8))
    assert world.replicas == 3
    assert world.cluster.objects[AUTOSCALERS, "llama"]["spec"]["maxReplicas"] == 8
    assert template(world) == before


@pytest.mark.parametrize("case", [case for case, spec in UNBUILDABLE.items() if spec])
async def test_a_new_service_that_cannot_be_built_has_no_workload(world: World, case: str) -> None:
    await serve_unbuildable(world, case)
    assert not world.has(DEPLOYMENTS)
    assert world.condition("Ready")["reason"] == "InvalidSpec"


async def test_the_pin_of_an_unknown_engine_is_kept_after_the_rollback(world: World) -> None:
    await world.serve()
    pin_unknown_engine(world)
    await world.settle()
    assert world.status["engine"]["image"] == "registry/cpu:newer"
    assert world.status["engine"]["version"] == "0.99.0"
    assert "0.99.0" in world.condition("Ready")["message"]


@pytest.mark.parametrize("case", UNBUILDABLE)
async def test_the_network_policy_of_pods_that_stay_opens_the_charts_proxy(
    world: World, case: str
) -> None:
    proxy = Proxy(https="http://proxy:3128")
    world.restart(keda=True, server_defaults=ServerDefaults(proxy=proxy))
    await world.serve(replicas=1)
    before = world.cluster.objects[NETWORK_POLICIES, "llama"]["spec"]["egress"]
    ports = [port["port"] for rule in before for port in rule.get("ports", ())]
    assert 3128 in ports
    await serve_unbuildable(world, case, replicas=1)
    assert world.condition("Ready")["reason"] == "InvalidSpec"
    assert world.cluster.objects[NETWORK_POLICIES, "llama"]["spec"]["egress"] == before


async def test_the_engine_of_pods_that_stay_is_the_one_that_was_recorded(world: World) -> None:
    await world.serve()
    before = world.status["engine"]
    wrong = {"image": "registry/other:1", "extraArgs": ["--no-such-flag=1"]}
    await world.serve(engine=wrong)
    assert world.status["engine"] == before
    await world.serve(engine={"image": "registry/other:1"})
    assert world.status["engine"]["image"] == "registry/other:1"


async def test_pods_follow_the_spec_again_once_it_is_corrected(world: World) -> None:
    await world.serve()
    await world.serve(engine={"extraArgs": ["--no-such-flag=1"]})
    await world.serve(engine={"maxModelLen": 512})
    (container,) = template(world)["spec"]["containers"]
    assert "--max-model-len=512" in container["args"]
    assert world.condition("Ready")["reason"] != "InvalidSpec"


async def test_fields_of_the_pods_that_others_own_do_not_become_the_operators(world: World) -> None:
    await world.serve()
    live = copy.deepcopy(world.cluster.objects[DEPLOYMENTS, "llama"])
    live["spec"]["template"]["metadata"]["annotations"] = {"kubectl/restartedAt": "now"}
    live["spec"]["template"]["spec"]["dnsPolicy"] = "ClusterFirst"
    world.see(live)
    sent = applied_field(live, "spec")["template"]
    assert "annotations" not in sent["metadata"]
    assert "dnsPolicy" not in sent["spec"]


@pytest.mark.parametrize("golden", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
def test_the_applied_part_of_an_object_equals_the_manifest(golden: Path) -> None:
    for manifest in objects_in(golden.read_text()):
        field = "spec" if "spec" in manifest else "data"
        assert applied_field(as_live(manifest), field) == manifest[field]

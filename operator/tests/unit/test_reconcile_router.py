"""Tests the passes that switch a router on and off and that replace its pods, with a cluster in
memory.
"""

from datetime import timedelta
from typing import Any

import pytest

from llmservice_operator.api.reasons import Reason
from llmservice_operator.cluster import Cache
from llmservice_operator.desired.router import RouterDecision
from llmservice_operator.errors import Forbidden
from llmservice_operator.kinds import (
    DEPLOYMENTS,
    LLMSERVICES,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    SERVICES,
    Kind,
)
from llmservice_operator.reconcile import Reconciler
from llmservice_operator.router_rollouts import LOOK_AGAIN_SECONDS, ROLLOUTS_AT_A_TIME
from llmservice_operator.router_status import RouterView
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.status import build_status
from llmservice_operator.workload import Observation
from operator_support.reconcile import RacingCluster, a_reconciler, changed_service
from operator_support.services import NOW, a_service

ON: dict[str, Any] = {"router": {"enabled": True}}
OFF: dict[str, Any] = {"router": {"enabled": False}}
REPLICAS, ROUTER = {"llmservice.dev/name": "llama"}, {"llmservice.dev/router-of": "llama"}
OF_A_ROUTER = {
    (NETWORK_POLICIES, "llama-router"),
    (SERVICES, "llama-replicas"),
    (SERVICES, "llama-router"),
    (DEPLOYMENTS, "llama-router"),
    (POD_DISRUPTION_BUDGETS, "llama-router"),
}


class Routers:
    """A cluster with services whose routers run, and the operator's passes over them."""

    def __init__(self, **settings: Any) -> None:
        self.cluster, self.cache, self.time = RacingCluster(), Cache(), NOW
        self.cluster.webhook = self._count_generation
        self.reconciler = self.operator(**settings)

    def operator(self, **settings: Any) -> Reconciler:
        return a_reconciler(
            self.cluster, self.cache, OperatorSettings(**settings), now=lambda: self.time
        )

    def _count_generation(self, stored: dict[str, Any]) -> None:
        """Increase the generation of a Deployment whose pods change, as the API server does."""
        known = self.cluster.objects.get((DEPLOYMENTS, stored["metadata"]["name"]))
        if stored["kind"] == "Deployment":
            before = {} if known is None else known["spec"]["template"]
            generation = 0 if known is None else known["metadata"]["generation"]
            is_changed = before != stored["spec"]["template"]
            stored["metadata"]["generation"] = generation + is_changed

    def see(self, manifest: dict[str, Any]) -> None:
        self.cache.observe(self.cluster.put(manifest))

    async def serve(self, name: str = "llama", **spec: Any) -> None:
        """Create the service or replace its spec, and reconcile it."""
        self.see(changed_service(self.cluster, name, spec))
        await self.settle(name)

    async def settle(self, name: str = "llama") -> float | None:
        for _ in range(10):
            again = await self.reconciler.reconcile(("team", name))
            if again != 0.0:
                return again
        raise AssertionError("a pass always finds something to write")

    async def make_ready(self, name: str, ready: int) -> None:
        """Report the pods of a Deployment as its controller does, and reconcile."""
        live = self.cluster.objects[DEPLOYMENTS, name]
        desired = live["spec"].get("replicas", 1)
        counts = {"replicas": desired, "updatedReplicas": desired, "readyReplicas": ready}
        observed = {"observedGeneration": live["metadata"]["generation"]}
        self.see({**live, "status": counts | observed})
        await self.settle(name.removesuffix("-router"))

    async def after(self, seconds: float) -> float | None:
        self.time += timedelta(seconds=seconds)
        return await self.settle()

    def get(self, kind: Kind, name: str = "llama") -> dict[str, Any]:
        spec: dict[str, Any] = self.cluster.objects[kind, name]["spec"]
        return spec

    @property
    def clients_reach(self) -> dict[str, str]:
        found: dict[str, str] = self.get(SERVICES)["selector"]
        return found

    @property
    def is_narrow(self) -> bool:
        """Whether only the router may reach the API of the replicas."""
        rule = self.get(NETWORK_POLICIES)["ingress"][0]
        return bool(rule["from"] == [{"podSelector": {"matchLabels": ROUTER}}])

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.objects[LLMSERVICES, "llama"]["status"]
        return found

    def condition(self, type_: str) -> dict[str, Any]:
        found: dict[str, Any]
        (found,) = (each for each in self.status["conditions"] if each["type"] == type_)
        return found


@pytest.mark.causes("RouterStarting", "RouterServing", "RouterStopping")
async def test_clients_are_switched_to_the_router_and_back_in_an_order_that_closes_no_path() -> (
    None
):
    world = Routers()
    await world.serve(**ON)
    await world.make_ready("llama", 1)
    assert {*world.cluster.objects} >= OF_A_ROUTER
    assert (world.clients_reach, world.is_narrow) == (REPLICAS, False)
    told = world.condition("RouterReady")
    assert (told["status"], told["reason"]) == ("False", "RouterStarting")
    assert told["message"].startswith("0 of 2 router pods are ready.")
    assert "llmservice.dev/router-of=llama" in told["message"]
    assert world.condition("Ready")["reason"] == "Serving"

    await world.make_ready("llama-router", 1)
    assert (world.clients_reach, world.status["router"]["ready"]) == (REPLICAS, "1/2")
    await world.make_ready("llama-router", 2)
    assert (world.clients_reach, world.is_narrow) == (ROUTER, False)
    told = world.condition("RouterReady")
    assert (told["status"], told["reason"]) == ("True", "RouterServing")
    assert await world.after(599) == 1
    assert not world.is_narrow
    await world.after(1)
    assert world.is_narrow

    await world.serve(**OFF)
    assert (world.clients_reach, world.is_narrow) == (ROUTER, False)
    told = world.condition("RouterReady")
    assert (told["status"], told["reason"]) == ("False", "RouterStopping")
    await world.after(10)
    assert world.clients_reach == REPLICAS
    assert world.get(DEPLOYMENTS, "llama-router")["replicas"] == 2
    await world.after(10)
    assert world.get(DEPLOYMENTS, "llama-router")["replicas"] == 0
    assert {*world.cluster.objects} >= OF_A_ROUTER
    await world.after(920)
    assert not OF_A_ROUTER & {*world.cluster.objects}
    assert "router" not in world.status
    assert "RouterReady" not in {each["type"] for each in world.status["conditions"]}
    assert {(DEPLOYMENTS, "llama"), (SERVICES, "llama")} <= {*world.cluster.objects}


async def test_a_converged_router_is_not_written_again() -> None:
    world = Routers()
    await world.serve(**ON)
    await world.make_ready("llama", 1)
    await world.make_ready("llama-router", 2)
    await world.after(600)
    world.cluster.writes.clear()
    assert await world.settle() is None
    assert world.cluster.writes == []


@pytest.mark.causes("RouterDegraded", "RouterNotReady")
async def test_the_status_says_that_no_client_reaches_a_service_whose_router_is_down() -> None:
    world = Routers()
    await world.serve(**ON)
    await world.make_ready("llama", 1)
    await world.make_ready("llama-router", 2)
    await world.make_ready("llama-router", 1)
    assert world.condition("RouterReady")["reason"] == "RouterDegraded"
    assert world.condition("Ready")["status"] == "True"

    await world.make_ready("llama-router", 0)
    assert world.clients_reach == ROUTER
    for type_ in ("RouterReady", "Ready", "Available"):
        told = world.condition(type_)
        assert (told["status"], told["reason"]) == ("False", "RouterNotReady")
        assert "spec.router.enabled" in told["message"]
    await world.serve(**OFF)
    assert world.clients_reach == REPLICAS


def test_an_event_tells_when_the_pods_of_a_router_are_no_longer_ready() -> None:
    before = {"router": {"phase": "Serving", "since": "2026-01-02T03:00:00Z"}}
    down = RouterView(RouterDecision(exists=True, pods=2, takes_requests=True))
    update = build_status(a_service(ON, status=before), None, Observation(), NOW, router=down)
    assert ("Warning", "RouterNotReady") in {(each.type, each.reason) for each in update.events}


async def test_a_refused_router_pod_is_quoted() -> None:
    world = Routers()
    await world.serve(**ON)
    live = world.cluster.objects[DEPLOYMENTS, "llama-router"]
    refused = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: pods"}
    world.see({**live, "status": {"conditions": [refused]}})
    await world.settle()
    assert "exceeded quota: pods" in world.condition("RouterReady")["message"]


async def test_a_router_that_cannot_be_created_leaves_the_clients_with_the_replicas() -> None:
    world = Routers()
    await world.serve()
    await world.make_ready("llama", 1)
    taken = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "llama-router", "namespace": "team", "uid": "of-another"},
        "spec": {"replicas": 2},
        "status": {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2},
    }
    world.cluster.put(taken)
    await world.serve(**ON)
    assert world.clients_reach == REPLICAS
    assert world.condition("Ready")["reason"] == Reason.NAME_CONFLICT.value


async def test_the_workload_and_the_service_object_are_never_pruned() -> None:
    world = Routers()
    await world.serve(**ON)
    await world.make_ready("llama", 1)
    world.cluster.refusals[DEPLOYMENTS] = Forbidden("exceeded quota: deployments", 403)
    await world.serve(replicas=3)
    await world.serve(**OFF)
    assert {(DEPLOYMENTS, "llama"), (SERVICES, "llama")} <= {*world.cluster.objects}


async def test_a_router_that_is_on_by_default_stays_on() -> None:
    world = Routers(router_by_default=True)
    await world.serve(replicas=2)
    assert (DEPLOYMENTS, "llama-router") in world.cluster.objects
    await world.serve(replicas=1)
    world.reconciler = world.operator(router_by_default=False)
    await world.settle()
    assert (DEPLOYMENTS, "llama-router") in world.cluster.objects


def image(world: Routers, name: str) -> str:
    template = world.get(DEPLOYMENTS, f"{name}-router")["template"]
    found: str = template["spec"]["containers"][0]["image"]
    return found


async def upgraded_operator(number: int) -> tuple[Routers, list[str]]:
    """Return an operator with a new default image, and its services, whose routers run the old."""
    world = Routers(router_image="router:1")
    services = [f"s{index}" for index in range(number)]
    for name in services:
        await world.serve(name, **ON)
        await world.make_ready(f"{name}-router", 2)
    world.reconciler = world.operator(router_image="router:2")
    return world, services


async def test_an_upgrade_replaces_the_pods_of_a_few_routers_at_a_time() -> None:
    world, services = await upgraded_operator(ROLLOUTS_AT_A_TIME + 2)

    def upgraded() -> list[str]:
        return [name for name in services if image(world, name) == "router:2"]

    waits = [await world.settle(name) for name in services]
    assert upgraded() == services[:ROLLOUTS_AT_A_TIME]
    assert waits[-1] == LOOK_AGAIN_SECONDS
    # A rollout that is not complete still counts towards the limit.
    await world.make_ready("s0-router", 1)
    await world.settle(services[-2])
    assert len(upgraded()) == ROLLOUTS_AT_A_TIME
    await world.make_ready("s0-router", 2)
    await world.settle(services[-2])
    assert upgraded() == services[: ROLLOUTS_AT_A_TIME + 1]
    await world.settle(services[-1])
    assert len(upgraded()) == ROLLOUTS_AT_A_TIME + 1
    # A change of the spec does not wait. It also brings the new image.
    await world.serve(services[-1], router={"enabled": True, "maxHeldRequests": 5})
    assert upgraded() == services


async def test_a_router_that_waits_for_its_turn_follows_all_other_changes() -> None:
    world, services = await upgraded_operator(ROLLOUTS_AT_A_TIME + 1)
    for name in services:
        await world.settle(name)
    last = services[-1]
    live = world.cluster.objects[DEPLOYMENTS, f"{last}-router"]
    world.see({**live, "spec": {**live["spec"], "replicas": 7}})
    await world.settle(last)
    assert world.get(DEPLOYMENTS, f"{last}-router")["replicas"] == 2
    assert image(world, last) == "router:1"


async def test_a_stuck_or_deleted_router_gives_its_turn_to_another() -> None:
    world, services = await upgraded_operator(ROLLOUTS_AT_A_TIME + 2)
    for name in services[:ROLLOUTS_AT_A_TIME]:
        await world.settle(name)
    stuck = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    live = world.cluster.objects[DEPLOYMENTS, "s0-router"]
    observed = {"observedGeneration": live["metadata"]["generation"]}
    world.see({**live, "status": {"replicas": 3, "conditions": [stuck], **observed}})
    await world.settle("s0")
    await world.settle(services[-2])
    assert image(world, services[-2]) == "router:2"

    world.cache.drop(world.cluster.put(world.cluster.objects[LLMSERVICES, "s1"]))
    await world.reconciler.reconcile(("team", "s1"))
    await world.settle(services[-1])
    assert image(world, services[-1]) == "router:2"

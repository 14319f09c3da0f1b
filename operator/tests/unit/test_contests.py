"""Tests passes in which a webhook or another client undoes the operator's writes."""

import asyncio
import copy
from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.api.reasons import Reason
from llmservice_operator.convergence import EQUAL_WRITES, WRITE_BURST
from llmservice_operator.errors import ClusterError, Forbidden, Rejected
from llmservice_operator.kinds import AUTOSCALERS, DEPLOYMENTS, LLMSERVICES, SERVICES
from llmservice_operator.status import FIELD_REWRITTEN
from operator_support.reconcile import KEY, OneService


@pytest.fixture(autouse=True)
async def _slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow the clock of the event loop down, so that no pause ends early on a busy machine."""
    loop = asyncio.get_running_loop()
    clock, begin = loop.time, loop.time()
    monkeypatch.setattr(loop, "time", lambda: begin + (clock() - begin) / 100)


def mirror_images(stored: dict[str, Any]) -> None:
    if stored["kind"] == DEPLOYMENTS.kind:
        (container,) = stored["spec"]["template"]["spec"]["containers"]
        container["image"] = f"mirror.example/{container['image']}"


async def test_a_rewritten_image_is_written_once_and_served_and_reported() -> None:
    world = OneService()
    world.cluster.webhook = mirror_images
    await world.settle()
    assert world.cluster.writes.count("Deployment") == 1
    world.is_rolled_out()
    await world.settle()
    ready, progressing = world.condition("Ready"), world.condition("Progressing")
    assert (ready["status"], ready["reason"]) == ("True", "Serving")
    assert 'containers[name=server].image is "mirror.example/' in progressing["message"]
    assert "An admission webhook of the cluster rewrites it" in progressing["message"]
    assert world.cluster.writes.count("Deployment") == 1
    assert world.cluster.told.count(("Warning", FIELD_REWRITTEN)) == 1


async def test_an_edit_of_a_rewritten_object_is_still_undone() -> None:
    world = OneService()
    world.cluster.webhook = mirror_images
    await world.settle()
    live = copy.deepcopy(world.cluster.objects[DEPLOYMENTS, "llama"])
    grace = live["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    live["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1
    world.see(live)
    await world.settle()
    live = world.cluster.objects[DEPLOYMENTS, "llama"]
    assert live["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == grace


async def test_a_response_with_the_same_version_is_no_write() -> None:
    world = OneService(autoscaling={"metric": "RequestsWaiting", "maxReplicas": 4})

    def store_in_another_form(stored: dict[str, Any]) -> None:
        if stored["kind"] == AUTOSCALERS.kind:
            stored["spec"]["maxReplicas"] = 4.5

    world.cluster.webhook = store_in_another_form
    await world.settle()
    assert world.cluster.writes.count(AUTOSCALERS.kind) <= 2
    assert world.cluster.writes.count("status") <= 2


class Rival:
    """Another client, which puts a field back after each write of the operator."""

    def __init__(self, world: OneService) -> None:
        self.world = world

    def act(self) -> None:
        live = copy.deepcopy(self.world.cluster.objects[SERVICES, "llama"])
        live["spec"]["ports"][0]["port"] = 1234
        ours = [e for e in live["metadata"]["managedFields"] if e["manager"] != "rival"]
        key = 'k:{"port": 80, "protocol": "TCP"}'
        theirs = {
            "manager": "rival",
            "operation": "Update",
            "fieldsV1": {"f:spec": {"f:ports": {key: {}}}},
        }
        live["metadata"]["managedFields"] = [*ours, theirs]
        self.world.see(live)


@pytest.mark.causes(Reason.FIELD_CONFLICT)
async def test_a_rival_is_left_alone_and_named_in_the_status() -> None:
    world = OneService()
    await world.settle()
    rival, before = Rival(world), world.cluster.writes.count("Service")
    waits = []
    for _ in range(3 * EQUAL_WRITES):
        rival.act()
        waits.append(await world.settle())
    assert world.cluster.writes.count("Service") - before == EQUAL_WRITES
    told = world.condition("Ready")
    assert (told["status"], told["reason"]) == ("False", Reason.FIELD_CONFLICT.value)
    assert "spec.ports[port=80,protocol=TCP]" in told["message"]
    assert "the manager rival updates it" in told["message"]
    assert waits[-1] is not None
    assert 0 < waits[-1] <= 1.0
    # The message does not change with each contest, so it is written once.
    writes = world.cluster.writes.count("status")
    rival.act()
    await world.settle()
    assert world.cluster.writes.count("status") == writes


async def test_a_child_that_another_client_keeps_deleting_is_left_alone() -> None:
    world = OneService()
    for _ in range(3 * EQUAL_WRITES):
        await world.settle()
        if (SERVICES, "llama") in world.cluster.objects:
            world.cache.drop(world.cluster.put(world.cluster.objects.pop((SERVICES, "llama"))))
            del world.cluster.objects[SERVICES, "llama"]
    assert world.cluster.writes.count("Service") == EQUAL_WRITES
    assert "somebody deletes it, again and again" in world.condition("Ready")["message"]


async def test_a_child_that_another_client_keeps_making_is_left_alone() -> None:
    world = OneService(autoscaling={"maxReplicas": 4, "provider": "External"})
    await world.settle()
    made = world.cluster.objects[AUTOSCALERS, "llama"]
    body = world.cluster.objects[LLMSERVICES, "llama"]
    spec = {key: value for key, value in body["spec"].items() if key != "autoscaling"}
    world.see({**body, "spec": spec, "metadata": {**body["metadata"], "generation": 2}})
    for _ in range(3 * EQUAL_WRITES):
        world.see(made)
        await world.settle()
    assert world.cluster.writes.count(f"delete {AUTOSCALERS.kind}") == EQUAL_WRITES
    assert "somebody makes it anew, again and again" in world.condition("Ready")["message"]


async def test_a_status_that_another_client_keeps_changing_is_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = OneService()
    await world.settle()
    world.cluster.writes.clear()
    for _ in range(3 * EQUAL_WRITES):
        body = world.cluster.objects[LLMSERVICES, "llama"]
        world.see({**body, "status": {**body["status"], "url": "http://elsewhere"}})
        await world.settle()
    assert world.cluster.writes.count("status") == EQUAL_WRITES
    assert "the status is left alone" in caplog.text


REFUSAL = (
    'Deployment.apps "llama" is invalid: spec.strategy.rollingUpdate: Forbidden: may not be '
    "specified when strategy `type` is 'Recreate'"
)


async def test_a_refusal_because_of_another_managers_field_is_no_wrong_spec() -> None:
    world = OneService()
    await world.settle()
    live = copy.deepcopy(world.cluster.objects[DEPLOYMENTS, "llama"])
    theirs: dict[str, Any] = {"f:spec": {"f:strategy": {"f:rollingUpdate": {"f:maxSurge": {}}}}}
    live["metadata"]["managedFields"].append(
        {"manager": "gitops", "operation": "Apply", "fieldsV1": theirs}
    )
    world.see(live)
    world.change(rolloutStrategy={"type": "Recreate"})
    world.cluster.refusals[DEPLOYMENTS] = Rejected(REFUSAL, 422)
    await world.settle()
    told = world.condition("Ready")
    assert told["reason"] == "FieldConflict"
    assert "The manager gitops owns spec.strategy.rollingUpdate" in told["message"]


UNKNOWN = (
    "failed to create typed patch object (team/llama; llmservice.dev/v1alpha1, Kind=LLMService): "
    ".status.gpus: field not declared in schema"
)
UNKNOWN_IN_A_LIST = (
    "failed to create typed patch object (team/llama; llmservice.dev/v1alpha1, Kind=LLMService): "
    'errors:\n  .status.conditions[type="Ready"].observedGeneration: field not declared in schema'
    "\n  .status.engine.untried: field not declared in schema"
)


class OlderCrd:
    """Refuses new fields of the status, as an older CRD does."""

    def __init__(self, world: OneService) -> None:
        self.lacks_fields = True
        self._apply = world.cluster.apply_status
        world.cluster.apply_status = self.apply_status  # type: ignore[method-assign]

    async def apply_status(self, manifest: dict[str, Any]) -> dict[str, Any]:
        status = manifest["status"]
        if self.lacks_fields and "gpus" in status:
            raise ClusterError(UNKNOWN, 500)
        if self.lacks_fields and "observedGeneration" in status["conditions"][0]:
            raise ClusterError(UNKNOWN_IN_A_LIST, 500)
        return await self._apply(manifest)


async def test_fields_of_the_status_that_the_crd_lacks_are_left_out_and_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = OneService()
    crd = OlderCrd(world)
    await world.settle()
    status = world.cluster.objects[LLMSERVICES, "llama"]["status"]
    assert "gpus" not in status
    assert "observedGeneration" in status
    assert all("observedGeneration" not in each for each in status["conditions"])
    assert "untried" not in status["engine"]
    (problem,) = world.problems
    assert problem is not None
    assert "lacks status.conditions.observedGeneration, status.engine.untried, status.gpus" in (
        problem
    )
    assert "apply crds/llmservice.yaml" in problem
    writes = world.cluster.writes.count("status")
    await world.settle()
    assert world.cluster.writes.count("status") == writes

    crd.lacks_fields = False
    monkeypatch.setattr("llmservice_operator.status_writer.TRY_AGAIN_SECONDS", 0.0)
    await world.settle()
    assert "gpus" in world.cluster.objects[LLMSERVICES, "llama"]["status"]
    assert world.problems == [problem, None]


async def test_another_manager_that_scales_in_direct_mode_is_left_alone() -> None:
    world = OneService(autoscaling={"minReplicas": 2, "maxReplicas": 4, "provider": "Direct"})
    await world.settle()
    for _ in range(3 * EQUAL_WRITES):
        live = world.cluster.objects[DEPLOYMENTS, "llama"]
        world.see({**live, "spec": {**live["spec"], "replicas": 0}})
        await world.settle()
    live = world.cluster.objects[DEPLOYMENTS, "llama"]
    assert live["spec"]["replicas"] == 0
    told = world.condition("Ready")
    assert told["reason"] == "FieldConflict"
    assert "Another client scales it" in told["message"]
    assert names.HANDOVER_FIELD_MANAGER not in told["message"]


async def test_a_child_that_is_refused_is_not_sent_again_with_every_event() -> None:
    world = OneService()
    await world.settle()
    world.cluster.refusals[SERVICES] = Forbidden("no Services here", 403)
    world.cluster.writes.clear()
    for number in range(2 * WRITE_BURST):
        live = copy.deepcopy(world.cluster.objects[SERVICES, "llama"])
        live["spec"]["ports"][0]["targetPort"] = number
        world.see(live)
        await world.reconciler.reconcile(KEY)
    sent = world.cluster.writes.count("Service")
    assert WRITE_BURST - 5 <= sent <= WRITE_BURST + 20

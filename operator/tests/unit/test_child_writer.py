"""Tests that each child is written independently, and that the status reports failed writes."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from llmservice_operator import child_writer, names
from llmservice_operator.api import Manifest
from llmservice_operator.api.reasons import Reason
from llmservice_operator.child_writer import ChildWriter
from llmservice_operator.desired.comparison import Difference, find_differences
from llmservice_operator.errors import ClusterError, Conflict, Forbidden, Rejected
from llmservice_operator.kinds import (
    AUTOSCALERS,
    CLAIMS,
    DEPLOYMENTS,
    LLMSERVICES,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    SCALED_OBJECTS,
    SERVICES,
    Kind,
    kind_of,
)
from llmservice_operator.reconcile import REQUEUE_SECONDS, WAIT_FOR_COLLECTOR_SECONDS
from llmservice_operator.settings import OperatorSettings
from operator_support.reconcile import KEY, OneService, a_reconciler

EVERY_SERVICE_HAS = (NETWORK_POLICIES, DEPLOYMENTS, SERVICES, POD_DISRUPTION_BUDGETS)


QUOTA = 'deployments.apps "llama" is forbidden: exceeded quota: no-deployments'
WEBHOOK = 'admission webhook "policy.example.com" denied the request: no policies here'
POLICY = "ValidatingAdmissionPolicy 'cost' with binding 'cost' denied request: too dear"
RANGE = 'services "llama" is forbidden: maximum cpu usage per Pod is 1, but limit is 2'
RIGHT = 'services is forbidden: User "operator" cannot patch resource "services" in API group ""'


@pytest.mark.causes(
    Reason.OBJECT_REFUSED, Reason.RIGHT_MISSING, Reason.CLUSTER_ERROR, Reason.OPERATOR_FAULT
)
@pytest.mark.parametrize("kind", EVERY_SERVICE_HAS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(Forbidden(QUOTA, 403), Reason.QUOTA_EXCEEDED, id="a quota"),
        pytest.param(Forbidden(WEBHOOK, 403), Reason.OBJECT_REFUSED, id="a webhook"),
        pytest.param(Rejected(POLICY, 422), Reason.OBJECT_REFUSED, id="a policy"),
        pytest.param(Forbidden(RANGE, 403), Reason.OBJECT_REFUSED, id="a limit range"),
        pytest.param(Forbidden(RIGHT, 403), Reason.RIGHT_MISSING, id="a missing right"),
        pytest.param(Conflict("was changed", 409), Reason.CLUSTER_ERROR, id="a conflict"),
        pytest.param(ClusterError("etcd is away", 500), Reason.CLUSTER_ERROR, id="an outage"),
        pytest.param(ClusterError("no answer"), Reason.CLUSTER_ERROR, id="a webhook that hangs"),
        pytest.param(KeyError("manager"), Reason.OPERATOR_FAULT, id="an unexpected error"),
    ],
)
async def test_a_refused_child_does_not_prevent_the_others_and_its_refusal_is_quoted(
    kind: Kind, error: Exception, reason: Reason
) -> None:
    world = OneService()
    world.cluster.refusals[kind] = error
    await world.settle()
    assert [each for each in EVERY_SERVICE_HAS if not world.has(each)] == [kind]
    for type_ in ("Ready", "Progressing"):
        told = world.condition(type_)
        assert (told["status"], told["reason"]) == ("False", reason.value)
        assert str(error) in told["message"]
        assert told["message"].endswith(reason.hint)


async def test_every_refusal_is_quoted_with_its_object_and_each_hint_appears_once() -> None:
    world = OneService()
    world.cluster.refusals = {
        NETWORK_POLICIES: Forbidden(WEBHOOK, 403),
        DEPLOYMENTS: Forbidden(QUOTA, 403),
        POD_DISRUPTION_BUDGETS: Forbidden(WEBHOOK, 403),
    }
    await world.settle()
    assert world.has(SERVICES)
    told = world.condition("Ready")
    assert told["reason"] == "ObjectRefused"
    for what in (
        f"NetworkPolicy llama: {WEBHOOK}.",
        f"Deployment llama: {QUOTA}.",
        f"PodDisruptionBudget llama: {WEBHOOK}.",
    ):
        assert what in told["message"]
    assert told["message"].count(Reason.OBJECT_REFUSED.hint) == 1
    assert told["message"].count(Reason.QUOTA_EXCEEDED.hint) == 1


async def test_long_refusals_leave_room_for_each_other_and_for_the_hints() -> None:
    world = OneService()
    for kind in EVERY_SERVICE_HAS:
        world.cluster.refusals[kind] = Forbidden(f"{kind.plural}: {'x' * 5000}", 403)
    await world.settle()
    message = world.condition("Ready")["message"]
    assert message.endswith(Reason.OBJECT_REFUSED.hint)
    assert all(kind.plural in message for kind in EVERY_SERVICE_HAS[:3])


async def test_a_refusal_that_may_last_is_tried_again_after_a_minute() -> None:
    world = OneService()
    world.cluster.refusals[DEPLOYMENTS] = Forbidden(QUOTA, 403)
    assert await world.settle() == REQUEUE_SECONDS
    del world.cluster.refusals[DEPLOYMENTS]
    await world.settle()
    assert world.has(DEPLOYMENTS)
    assert world.condition("Ready")["reason"] != "QuotaExceeded"


async def test_a_child_is_compared_once_for_each_of_its_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[str] = []

    def compare(live: Manifest, manifest: Manifest) -> Iterator[Difference]:
        compared.append(live["kind"])
        return find_differences(live, manifest)

    monkeypatch.setattr(child_writer, "find_differences", compare)
    world = OneService()
    await world.settle()
    assert Counter(compared).most_common(1)[0][1] == 1
    service = world.cluster.objects[SERVICES, "llama"]
    compared.clear()
    world.cluster.put({**service, "spec": {**service["spec"], "type": "NodePort"}})
    world.cache.observe(world.cluster.objects[SERVICES, "llama"])
    await world.settle()
    assert compared == ["Service", "Service"]  # before and after the write that restores it
    assert world.cluster.objects[SERVICES, "llama"]["spec"]["type"] == service["spec"]["type"]


async def test_an_outage_is_reported_with_one_write_and_left_to_the_queues_backoff() -> None:
    world = OneService()
    world.cluster.refusals[SERVICES] = ClusterError("busy", 429, retry_after_seconds=7)
    for _ in range(4):
        with pytest.raises(ClusterError) as raised:
            await world.reconciler.reconcile(KEY)
        assert raised.value.retry_after_seconds == 7
    assert world.cluster.writes.count("status") == 1


async def test_a_child_that_another_client_changed_meanwhile_is_read_and_written_again() -> None:
    world = OneService()
    await world.settle()
    seen = world.cluster.objects[SERVICES, "llama"]
    edited = {**seen, "spec": {**seen["spec"], "ports": []}}
    world.see(edited)
    other = {**edited, "metadata": {**seen["metadata"], "uid": "made anew"}}
    world.cluster.put(other)
    world.cluster.refuse_other_uids = True
    assert await world.reconciler.reconcile(KEY) == 0.0
    live = world.cluster.objects[SERVICES, "llama"]
    assert live["spec"]["ports"] == seen["spec"]["ports"]
    assert world.condition("Ready")["reason"] != "ClusterError"


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(ClusterError("etcd is away", 500), id="an outage"),
        pytest.param(Forbidden(RIGHT, 403), id="a missing right"),
        pytest.param(TypeError("unhashable"), id="an unexpected error"),
    ],
)
async def test_a_pass_that_fails_for_any_reason_still_writes_a_status(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = OneService()

    async def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(world.reconciler, "_pass", broken)
    with pytest.raises(type(error)):
        await world.reconciler.reconcile(KEY)
    told = world.condition("Ready")
    assert told["status"] == "False"
    assert str(error) in told["message"]


async def test_a_status_that_cannot_be_written_does_not_hide_why_the_pass_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = OneService()

    async def broken(*_: Any) -> None:
        raise TypeError("unhashable")

    monkeypatch.setattr(world.reconciler, "_pass", broken)
    world.cluster.refusals[LLMSERVICES] = Forbidden("no rights on the status", 403)
    with pytest.raises(TypeError, match="unhashable"):
        await world.reconciler.reconcile(KEY)
    assert "no rights on the status" in caplog.text


async def test_a_workload_that_cannot_be_read_is_left_alone_and_keeps_its_engine() -> None:
    world = OneService()
    await world.settle()
    live = world.cluster.objects.pop((DEPLOYMENTS, "llama"))
    world.cache.drop(live)
    engine = world.cluster.objects[LLMSERVICES, "llama"]["status"]["engine"]

    async def unreadable(*_: Any) -> None:
        raise ClusterError("etcd is away", 500)

    world.cluster.read = unreadable  # type: ignore[assignment, method-assign]
    world.cluster.writes.clear()
    await world.settle()
    assert "Deployment" not in world.cluster.writes
    assert "etcd is away" in world.condition("Ready")["message"]
    assert world.cluster.objects[LLMSERVICES, "llama"]["status"]["engine"] == engine


@pytest.mark.causes(Reason.OBJECT_TERMINATING)
async def test_a_child_that_is_being_deleted_is_waited_for_and_the_status_says_so() -> None:
    world = OneService()
    await world.settle()
    live = world.cluster.objects[SERVICES, "llama"]
    going = {**live["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
    world.see({**live, "metadata": going})
    assert await world.settle() == WAIT_FOR_COLLECTOR_SECONDS
    told = world.condition("Ready")
    assert told["reason"] == "ObjectTerminating"
    assert told["message"].startswith("Service llama is being deleted")


async def test_an_object_of_a_deleted_service_is_waited_for_and_the_others_are_made() -> None:
    world = OneService()
    owner = {
        "apiVersion": LLMSERVICES.api_version,
        "kind": LLMSERVICES.kind,
        "name": "llama",
        "uid": "of the deleted one",
        "controller": True,
    }
    metadata = {"name": "llama", "namespace": "team", "ownerReferences": [owner]}
    world.see({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {}})
    assert await world.settle() == WAIT_FOR_COLLECTOR_SECONDS
    assert world.has(DEPLOYMENTS)
    told = world.condition("Ready")
    assert told["reason"] == "ObjectTerminating"
    assert "Service llama belongs to a deleted service" in told["message"]


async def test_a_retry_counts_every_request_that_was_refused() -> None:
    world = OneService()
    for kind in (SERVICES, DEPLOYMENTS):
        world.cluster.refusals[kind] = ClusterError("etcd is away", 500, retry_after_seconds=3)
    with pytest.raises(ClusterError) as raised:
        await world.reconciler.reconcile(KEY)
    assert raised.value.requests == 2
    assert raised.value.retry_after_seconds == 3


CLAIM = "llama-cache"
RETAINED = {
    "uri": "hf://org/model",
    "cache": {"type": "PersistentVolumeClaim", "size": "1Gi"},
}


@pytest.mark.parametrize("taken", [names.SERVICE_LABEL, names.MANAGED_BY_LABEL])
async def test_a_label_that_is_removed_from_a_retained_claim_is_restored(taken: str) -> None:
    world = OneService(model=RETAINED)
    await world.settle()
    made = world.cluster.objects[CLAIMS, CLAIM]
    labels = {name: value for name, value in made["metadata"]["labels"].items() if name != taken}
    world.see({**made, "metadata": {**made["metadata"], "labels": labels}})
    await world.settle()
    metadata = world.cluster.objects[CLAIMS, CLAIM]["metadata"]
    assert metadata["labels"] == made["metadata"]["labels"]


async def test_a_claim_of_the_same_name_from_another_client_is_left_alone() -> None:
    world = OneService(model=RETAINED)
    foreign = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": {}}
    stored = world.cluster.put({**foreign, "metadata": {"name": CLAIM, "namespace": "team"}})
    await world.settle()
    assert world.cluster.objects[CLAIMS, CLAIM] == stored
    assert world.condition("Ready")["reason"] == "NameConflict"


async def test_no_second_autoscaler_is_made_while_the_first_cannot_be_deleted() -> None:
    world = OneService(autoscaling={"maxReplicas": 4, "provider": "External"})
    world.reconciler = a_reconciler(world.cluster, world.cache, OperatorSettings(keda=True))
    await world.reconciler._served.load()
    await world.settle()
    assert world.has(AUTOSCALERS)
    body = world.cluster.objects[LLMSERVICES, "llama"]
    spec = {**body["spec"], "autoscaling": {"maxReplicas": 4, "provider": "KEDA"}}
    world.see({**body, "spec": spec, "metadata": {**body["metadata"], "generation": 2}})
    world.cluster.refusals[AUTOSCALERS] = Forbidden(WEBHOOK, 403)
    await world.settle()
    assert not world.has(SCALED_OBJECTS)
    assert WEBHOOK in world.condition("Ready")["message"]
    world.cluster.refusals.clear()
    await world.settle()
    assert world.has(SCALED_OBJECTS)
    assert not world.has(AUTOSCALERS)


async def test_slow_children_leave_time_to_report_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child_writer, "BUDGET_SECONDS", -1.0)
    world = OneService()
    with pytest.raises(ClusterError):
        await world.reconciler.reconcile(KEY)
    assert world.cluster.writes == ["status"]
    assert "other objects took too long" in world.condition("Ready")["message"]


async def test_webhooks_that_hang_take_no_time_from_the_other_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = OneService()
    now = [0.0]
    monkeypatch.setattr(ChildWriter, "_now", lambda _: now[0])
    hanging = {NETWORK_POLICIES, DEPLOYMENTS, POD_DISRUPTION_BUDGETS}
    apply = world.cluster.apply

    async def hang(manifest: Any, *arguments: Any, **more: Any) -> Any:
        if kind_of(manifest) in hanging:
            now[0] += 15.0
            raise ClusterError("PATCH: no answer")
        return await apply(manifest, *arguments, **more)

    world.cluster.apply = hang  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(ClusterError, match="no answer"):
            await world.reconciler.reconcile(KEY)
    # The first pass did not create the Service object, because the operator did not know yet which
    # kinds hang.
    assert world.has(SERVICES)
    # A kind that works again is tried, however many other kinds hang.
    hanging.remove(POD_DISRUPTION_BUDGETS)
    for _ in range(2):
        with pytest.raises(ClusterError, match="no answer"):
            await world.reconciler.reconcile(KEY)
    assert world.has(POD_DISRUPTION_BUDGETS)
    hanging.clear()
    await world.settle()
    assert [kind for kind in EVERY_SERVICE_HAS if not world.has(kind)] == []


async def test_an_autoscaler_whose_deletion_hangs_is_deleted_after_the_others_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = OneService(autoscaling={"maxReplicas": 4, "provider": "External"})
    await world.settle()
    world.change(autoscaling=None, service={"port": 8080})
    delete = world.cluster.delete

    async def hang(live: dict[str, Any]) -> None:
        raise ClusterError("DELETE: no answer")

    monkeypatch.setattr(world.cluster, "delete", hang)
    for _ in range(2):
        with pytest.raises(ClusterError, match="no answer"):
            await world.reconciler.reconcile(KEY)
    assert world.cluster.objects[SERVICES, "llama"]["spec"]["ports"][0]["port"] == 8080
    assert "DELETE: no answer" in world.condition("Ready")["message"]
    monkeypatch.setattr(world.cluster, "delete", delete)
    await world.settle()
    assert not world.has(AUTOSCALERS)


async def test_one_check_that_the_service_exists_is_enough_for_all_children_of_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = OneService()
    await world.settle()
    assert all(map(world.has, EVERY_SERVICE_HAS))
    assert world.cluster.read_kinds.count(LLMSERVICES) == 1
    monkeypatch.setattr(child_writer, "WANTED_SECONDS", 0.0)
    slow = OneService()
    await slow.settle()
    assert slow.cluster.read_kinds.count(LLMSERVICES) == len(EVERY_SERVICE_HAS)


async def test_the_check_of_a_service_is_not_valid_for_its_successor() -> None:
    world = OneService()
    await world.settle()
    world.cluster.read_kinds.clear()
    successor = world.cluster.objects[LLMSERVICES, KEY[1]]
    world.see({**successor, "metadata": {**successor["metadata"], "uid": "successor"}})
    for kind in EVERY_SERVICE_HAS:
        world.cache.drop(world.cluster.objects.pop((kind, KEY[1])))
    await world.settle()
    assert world.cluster.read_kinds.count(LLMSERVICES) == 1
    owners = world.cluster.objects[DEPLOYMENTS, KEY[1]]["metadata"]["ownerReferences"]
    assert [each["uid"] for each in owners] == ["successor"]


async def test_a_new_service_costs_one_read_of_its_workload_and_one_of_itself() -> None:
    world = OneService()
    await world.settle()
    assert world.cluster.read_kinds == [DEPLOYMENTS, LLMSERVICES]


@pytest.mark.parametrize("kind", EVERY_SERVICE_HAS, ids=lambda kind: kind.kind)
async def test_an_unwatched_object_of_another_owner_is_left_unchanged(kind: Kind) -> None:
    world = OneService()
    metadata = {"name": KEY[1], "namespace": KEY[0]}
    foreign = world.cluster.put(
        {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": {}}
    )
    await world.settle()
    assert world.cluster.objects[kind, KEY[1]] is foreign
    assert all(map(world.has, EVERY_SERVICE_HAS))
    assert f"{kind.kind} llama belongs to somebody else" in world.condition("Ready")["message"]


async def test_a_workload_that_appears_after_the_read_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = OneService()
    create, foreign = world.cluster.create, list[Any]()

    async def after_somebody_else(manifest: dict[str, Any]) -> dict[str, Any]:
        if kind_of(manifest) is DEPLOYMENTS and not foreign:
            metadata = {"name": KEY[1], "namespace": KEY[0]}
            foreign.append(world.cluster.put({**manifest, "metadata": metadata, "spec": {}}))
        return await create(manifest)

    monkeypatch.setattr(world.cluster, "create", after_somebody_else)
    await world.settle()
    assert [world.cluster.objects[DEPLOYMENTS, KEY[1]]] == foreign
    assert "Deployment llama belongs to somebody else" in world.condition("Ready")["message"]

"""Tests that a service without requests loses its replicas and that a request brings them back."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from llmservice_operator import scaler
from llmservice_operator.api.calibration import LENGTH_BUCKETS, Calibration
from llmservice_operator.api.load_report import ExternalMetrics, LoadReport, ReplicaLoad
from llmservice_operator.api.wake import Wake
from llmservice_operator.desired.schedule import Floor, floor_of
from llmservice_operator.errors import Forbidden
from llmservice_operator.kinds import (
    AUTOSCALERS,
    DEPLOYMENTS,
    LLMSERVICES,
    NETWORK_POLICIES,
    PODS,
    SCALED_OBJECTS,
)
from llmservice_operator.metrics_server.rest import ROOM_SECONDS, refusal_of
from llmservice_operator.names import FIELD_MANAGER, MANAGED_BY_LABEL, SERVICE_LABEL
from llmservice_operator.reconcile import LOOK_AT_IDLE_SECONDS
from operator_support.reconcile import changed_service
from operator_support.report import a_report
from operator_support.services import NOW, a_pod
from operator_support.world import World, by

OURS = ExternalMetrics(is_served=True, message="It is ours.")
PROVIDERS = ("External", "KEDA", "Direct")
KIND = {"apiVersion": PODS.api_version, "kind": PODS.kind}
MANAGED = {MANAGED_BY_LABEL: FIELD_MANAGER}
ROUTER = (DEPLOYMENTS, "llama-router")


@pytest.fixture
def world() -> World:
    return World()


def idle(world: World, seconds: float | None, **fields: Any) -> LoadReport:
    """Return a report about the replica, which nobody has used for this time."""
    replica = ReplicaLoad(pod="llama-1", is_ready=True, running_requests=0)
    known = {"external_metrics": OURS, "last_start_seconds": 42.0, "replicas": (replica,)}
    at = world.now.timestamp()
    return a_report(**{"at": at, "demand_percent": 1.0, "idle_seconds": seconds, **known, **fields})


def see_replica(world: World, name: str = "llama-1") -> None:
    pod = a_pod({"running": {}}, ready=True)
    labels = {**pod["metadata"]["labels"], SERVICE_LABEL: "llama", **MANAGED}
    named = {"name": name, "namespace": "team", "uid": f"uid-of-{name}", "labels": labels}
    world.see({**pod, **KIND, "metadata": {**pod["metadata"], **named}})


async def serve(world: World, provider: str, **autoscaling: Any) -> None:
    """Create a service that may have no replicas, with one replica and a router that serves."""
    world.report = idle(world, 0.0)
    await world.serve(**by(provider, minReplicas=0, **autoscaling))
    see_replica(world)
    router = world.cluster.objects[ROUTER]
    status = {"observedGeneration": router["metadata"].get("generation", 0)}
    world.see({**router, "status": {**status, "readyReplicas": 2, "updatedReplicas": 2}})
    await world.settle()
    if provider == "KEDA":
        world.keda_makes_its_hpa()
    assert world.replicas == 1
    assert world.status["router"]["phase"] == "Serving"


async def rest(world: World) -> float | None:
    """Let the service lose its replicas. Return the seconds until the next pass."""
    world.report = idle(world, 900.0)
    await world.settle()
    if (AUTOSCALERS, "keda-hpa-llama") in world.cluster.objects:
        # KEDA's HPA would start the workload again.
        assert world.replicas == 1
        world.lose(AUTOSCALERS, "keda-hpa-llama")
        await world.settle()
    assert world.replicas == 0
    world.lose(PODS, "llama-1")
    world.report = idle(world, 905.0, demand_percent=None, missing="NoReadyReplica", replicas=())
    return await world.settle()


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_service_without_requests_rests_and_the_next_request_wakes_it(
    world: World, provider: str
) -> None:
    await serve(world, provider)
    world.report = idle(world, 899.0)
    await world.settle()
    assert world.replicas == 1

    await rest(world)
    world.now += timedelta(hours=1)  # the router has served for long
    assert await world.settle() == LOOK_AT_IDLE_SECONDS
    # KEDA starts a workload without replicas, and the HPA does not.
    assert not world.has(SCALED_OBJECTS)
    assert world.has(AUTOSCALERS) == (provider == "External")

    world.wake = Wake(held_requests=20, held_percent=200.0)
    await world.settle()
    assert world.replicas == 3
    assert world.has(SCALED_OBJECTS) == (provider == "KEDA")
    world.wake = None
    await world.settle()
    assert world.replicas == 3
    assert [each["reason"] for each in world.status["autoscaling"]["decisions"]] == [
        "a request came while no replica ran",
        "no request for 900 s",
    ]


async def test_a_pass_that_wakes_a_service_writes_only_the_replicas_because_others_wait_behind_it(
    world: World,
) -> None:
    await serve(world, "External")
    await rest(world)
    told = world.status
    world.cluster.writes.clear()

    world.wake = Wake(held_requests=1, held_percent=1.0)
    assert await world.reconcile() == 0.0
    assert (world.replicas, len(world.cluster.writes)) == (1, 1)
    assert world.status == told

    await world.settle()
    assert world.status["autoscaling"]["desiredReplicas"] == 1
    assert world.condition("Ready")["status"] == "False"


async def test_a_woken_service_gets_its_replicas_before_its_other_objects_are_compared(
    world: World,
) -> None:
    await serve(world, "External")
    await rest(world)
    policy = world.cluster.objects[NETWORK_POLICIES, "llama"]
    world.see({**policy, "spec": {"podSelector": {}}})
    world.cluster.writes.clear()

    world.wake = Wake(held_requests=1, held_percent=1.0)
    assert await world.reconcile() == 0.0
    assert (world.replicas, world.cluster.writes) == (1, ["Deployment"])

    await world.settle()
    assert world.cluster.objects[NETWORK_POLICIES, "llama"]["spec"] == policy["spec"]


async def test_the_first_replica_of_a_woken_service_has_the_newest_spec(world: World) -> None:
    await serve(world, "External")
    await rest(world)
    spec = {**by("External", minReplicas=0), "engine": {"seed": 7}}
    world.see(changed_service(world.cluster, "llama", spec))

    world.wake = Wake(held_requests=1, held_percent=1.0)
    while world.replicas == 0:
        assert await world.reconcile() == 0.0
    assert "--seed=7" in pods_of(world)["spec"]["containers"][0]["args"]


async def test_a_foreign_change_of_the_pods_is_undone_before_the_first_replica_of_a_woken_service(
    world: World,
) -> None:
    await serve(world, "External")
    await rest(world)
    live, pods = world.cluster.objects[DEPLOYMENTS, "llama"], pods_of(world)
    foreign = {**pods, "spec": {**pods["spec"], "terminationGracePeriodSeconds": 1}}
    world.see({**live, "spec": {**live["spec"], "template": foreign}})

    world.wake = Wake(held_requests=1, held_percent=1.0)
    while world.replicas == 0:
        assert await world.reconcile() == 0.0
    assert pods_of(world)["spec"] == pods["spec"]


def pods_of(world: World) -> dict[str, Any]:
    """Return the template of the pods of the replicas."""
    found: dict[str, Any] = world.cluster.objects[DEPLOYMENTS, "llama"]["spec"]["template"]
    return found


async def test_a_service_that_rests_is_ready_but_not_available(world: World) -> None:
    await serve(world, "External")
    await rest(world)
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("True", "Idle")
    assert ready["message"] == (
        "No replica runs, because there was no request for 900 s. The next request wakes the "
        "service. The last start took 42 s."
    )
    available = world.condition("Available")
    assert (available["status"], available["reason"]) == ("False", "Idle")
    assert world.condition("Progressing")["status"] == "False"
    active = world.condition("AutoscalingActive")
    assert (active["status"], active["reason"]) == ("True", "Idle")
    assert (world.status["ready"], world.status["autoscaling"]["desiredReplicas"]) == ("0/0", 0)
    world.cluster.writes.clear()
    await world.settle()
    assert world.cluster.writes == []


async def test_without_a_metrics_server_a_service_that_rests_is_not_ready(world: World) -> None:
    await serve(world, "External")
    await rest(world)
    world.report = None
    await world.settle()
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "MetricsMissing")
    assert world.replicas == 0


async def test_an_object_over_a_quota_refuses_no_request_of_a_service_that_can_start(
    world: World,
) -> None:
    await serve(world, "External")
    await rest(world)
    world.lose(NETWORK_POLICIES)
    over = 'networkpolicies.networking.k8s.io "llama" is forbidden: exceeded quota: few'
    world.cluster.refusals[NETWORK_POLICIES] = Forbidden(over, 403)
    await world.settle()
    assert world.condition("Ready")["reason"] == "QuotaExceeded"
    assert refusal_of(world.cluster.objects[LLMSERVICES, "llama"]) is None
    world.wake = Wake(held_requests=1, held_percent=1.0)
    await world.settle()
    assert world.replicas == 1
    assert refusal_of(world.cluster.objects[LLMSERVICES, "llama"]) is None


async def test_requests_of_a_woken_service_are_refused_while_a_quota_refuses_its_pod(
    world: World,
) -> None:
    await serve(world, "External")
    await rest(world)
    world.wake = Wake(held_requests=1, held_percent=1.0)
    await world.settle()
    workload = world.cluster.objects[DEPLOYMENTS, "llama"]
    over = 'pods "llama-2" is forbidden: exceeded quota: few'
    failed = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": over}
    status = {"observedGeneration": workload["metadata"].get("generation", 0)}
    world.see({**workload, "status": {**status, "conditions": [failed]}})
    await world.settle()
    assert world.condition("Ready")["reason"] == "QuotaExceeded"
    refusal = refusal_of(world.cluster.objects[LLMSERVICES, "llama"])
    assert refusal is not None
    assert refusal.begins == world.now.timestamp() + ROOM_SECONDS


async def test_a_start_that_takes_longer_than_a_request_waits_is_told(world: World) -> None:
    await serve(world, "External")
    world.report = idle(world, 0.0, last_start_seconds=301.0)
    await world.settle()
    assert (
        "The last start of a replica took 301 s, but a request waits in the router for at most "
        "300 s: raise router.holdTimeoutSeconds, or set autoscaling.minReplicas to 1."
    ) in world.condition("Progressing")["message"]


async def test_a_router_that_is_too_old_to_wake_the_service_is_told(world: World) -> None:
    await serve(world, "External")
    world.report = idle(world, None, has_old_router=True)
    await world.settle()
    assert world.replicas == 1
    assert (
        "The service keeps its replicas while nobody uses it, because a router pod is too old to "
        "wake it: remove spec.router.image, or set the chart value router.image to an image of the "
        "operator's version."
    ) in world.condition("Progressing")["message"]
    assert ("Warning", "RouterTooOld") in world.cluster.told


@pytest.mark.parametrize(
    ("seconds", "fields"),
    [
        (None, {}),
        (899.0, {}),
        (900.0, {"at": 0.0}),
        (900.0, {"replicas": ()}),
        (900.0, {"replicas": (ReplicaLoad(pod="llama-0", is_ready=True),)}),
        (900.0, {"replicas": (ReplicaLoad(pod="llama-1", is_ready=False),)}),
    ],
    ids=["unknown", "recent", "old report", "no replica", "an earlier one", "one that starts"],
)
async def test_a_service_that_may_be_needed_keeps_its_replicas(
    world: World, seconds: float | None, fields: dict[str, Any]
) -> None:
    await serve(world, "Direct")
    world.report = idle(world, seconds, **fields)
    await world.settle()
    assert world.replicas == 1


async def test_a_request_that_waits_keeps_the_replicas(world: World) -> None:
    await serve(world, "Direct")
    world.wake = Wake(held_requests=1, held_percent=1.0)
    world.report = idle(world, 900.0)
    await world.settle()
    assert world.replicas == 1


async def test_a_service_whose_clients_do_not_reach_the_router_yet_keeps_its_replicas(
    world: World,
) -> None:
    world.report = idle(world, 900.0)
    await world.serve(**by("Direct", minReplicas=0))
    see_replica(world)
    await world.settle()
    assert world.status["router"]["phase"] == "Starting"
    assert world.replicas == 1


@pytest.mark.parametrize("mode", ["Paused", "Recommend"])
async def test_a_mode_that_changes_no_replicas_neither_ends_nor_wakes_a_service(
    world: World, mode: str
) -> None:
    await serve(world, "Direct")
    await world.serve(**by("Direct", minReplicas=0, mode=mode))
    world.report = idle(world, 900.0)
    await world.settle()
    assert world.replicas == 1
    world.scale(0)
    world.wake = Wake(held_requests=1, held_percent=1.0)
    await world.settle()
    assert world.replicas == 0
    assert world.condition("Ready")["reason"] == "ScaledToZero"


@pytest.mark.parametrize(
    ("spec", "replicas"),
    [
        (by("External", minReplicas=2), 2),
        ({"replicas": 3}, 3),
        (by("External", minReplicas=0), 0),
    ],
    ids=["a minimum", "a fixed number", "the same"],
)
async def test_another_spec_takes_effect_on_a_service_that_rests(
    world: World, spec: dict[str, Any], replicas: int
) -> None:
    await serve(world, "External")
    await rest(world)
    await world.serve(**spec)
    assert world.replicas == replicas


async def test_a_service_that_rests_is_suspended_and_resumed(world: World) -> None:
    await serve(world, "External")
    await rest(world)
    await world.serve(**by("External", minReplicas=0), suspend=True)
    assert world.condition("Ready")["reason"] == "Suspended"
    world.wake = Wake(held_requests=1, held_percent=1.0)
    await world.settle()
    assert world.replicas == 0
    world.wake = None
    await world.serve(**by("External", minReplicas=0))
    # The resumed service shows that it can start.
    assert world.replicas == 1


@pytest.mark.parametrize(
    ("autoscaling", "woken"),
    [
        ({"metric": "RequestsWaiting", "targetRequestsWaiting": 10}, 2),
        ({"metric": "KVCacheUsage"}, 1),
        ({"maxReplicas": 2}, 2),
        ({"targetGPUUtilization": 60}, 4),
    ],
)
async def test_the_held_requests_decide_how_many_replicas_start(
    world: World, autoscaling: dict[str, Any], woken: int
) -> None:
    await serve(world, "Direct", **autoscaling)
    await rest(world)
    world.wake = Wake(held_requests=20, held_percent=200.0)
    await world.settle()
    assert world.replicas == woken


async def test_ten_cycles_leave_nothing_behind(world: World) -> None:
    await serve(world, "KEDA")
    for _ in range(10):
        await rest(world)
        world.wake = Wake(held_requests=1, held_percent=1.0)
        await world.settle()
        assert (world.replicas, world.has(SCALED_OBJECTS)) == (1, True)
        world.keda_makes_its_hpa()
        see_replica(world)
        world.wake = None
        world.now += timedelta(seconds=60)
        world.report = idle(world, 0.0)
        await world.settle()
    world.cluster.writes.clear()
    await world.settle()
    assert world.cluster.writes == []


WINDOW = {"start": "30 3 * * *", "end": "0 5 * * *", "minReplicas": 2}
"""It begins 26 minutes after NOW."""


def minimum(world: World, provider: str) -> int | None:
    """Return the minimum number of replicas that the autoscaler has; None for Direct."""
    kind, field = {
        "External": (AUTOSCALERS, "minReplicas"),
        "KEDA": (SCALED_OBJECTS, "minReplicaCount"),
        "Direct": (None, ""),
    }[provider]
    return None if kind is None else int(world.cluster.objects[kind, "llama"]["spec"][field])


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_window_of_the_schedule_wakes_a_service_that_rests_before_it_begins(
    world: World, provider: str
) -> None:
    await serve(world, provider, idle={"schedule": [WINDOW]})
    await rest(world)
    told = "The next window of idle.schedule begins at 2026-01-02 03:30 UTC."
    assert told in world.condition("AutoscalingActive")["message"]

    world.now = NOW.replace(hour=3, minute=28, second=0)
    world.report = idle(world, None, demand_percent=None, replicas=(), longest_start_seconds=85.0)
    assert await world.settle() == 20.0
    assert world.replicas == 0
    world.now += timedelta(seconds=20)
    await world.settle()
    assert world.replicas == 2
    assert world.status["autoscaling"]["decisions"][0]["reason"] == (
        "the minimum in a window of idle.schedule: "
        "EffectiveGPUUtilization unknown, 85 % for each replica"
    )
    assert (
        "A window of idle.schedule, which begins at 2026-01-02 03:30 UTC, requires at least 2 "
        "replicas."
    ) in world.condition("AutoscalingActive")["message"]

    for name in ("llama-1", "llama-2"):
        see_replica(world, name)
    replicas = tuple(ReplicaLoad(pod=f"llama-{it}", is_ready=True) for it in (1, 2))
    for hour, minute in ((3, 31), (4, 59)):
        world.now = NOW.replace(hour=hour, minute=minute)
        world.report = idle(world, 3600.0, replicas=replicas)
        await world.settle()
        assert world.replicas == 2
        assert minimum(world, provider) in (2, None)
    told = "A window of idle.schedule, which ends at 2026-01-02 05:00 UTC, requires at least 2 "
    assert told in world.condition("AutoscalingActive")["message"]

    world.now = NOW.replace(hour=5, minute=0, second=0)
    world.report = idle(world, 5400.0, replicas=replicas)
    await world.settle()
    assert world.replicas == 0


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_window_raises_the_minimum_of_a_service_that_always_has_replicas(
    world: World, provider: str
) -> None:
    world.report = idle(world, None)
    await world.serve(**by(provider, idle={"schedule": [WINDOW]}))
    assert minimum(world, provider) in (1, None)
    world.now = NOW.replace(minute=30)
    world.report = idle(world, None)
    await world.settle()
    assert minimum(world, provider) in (2, None)
    assert world.replicas == (2 if provider == "Direct" else 1)
    world.now = NOW.replace(hour=5)
    await world.settle()
    assert minimum(world, provider) in (1, None)


async def test_a_window_begins_without_a_metrics_server_and_wakes_no_suspended_service(
    world: World,
) -> None:
    await serve(world, "External", idle={"schedule": [WINDOW]})
    await rest(world)
    world.report = None
    schedule = {"minReplicas": 0, "idle": {"schedule": [WINDOW]}}
    await world.serve(**by("External", **schedule), suspend=True)
    world.now = NOW.replace(minute=29)
    await world.settle()
    assert world.replicas == 0
    await world.serve(**by("External", **schedule))
    assert world.replicas == 1
    world.scale(0)
    await world.settle()
    assert world.replicas == 2


async def test_a_window_starts_nothing_in_a_mode_that_changes_no_replicas(world: World) -> None:
    await world.serve(**by("Direct", mode="Paused", idle={"schedule": [WINDOW]}))
    world.now = NOW.replace(minute=29)
    await world.settle()
    assert world.replicas == 1
    assert "idle.schedule" not in world.condition("AutoscalingActive")["message"]


async def test_replicas_that_start_before_a_window_stay_although_the_cold_start_becomes_shorter(
    world: World,
) -> None:
    await serve(world, "Direct", idle={"schedule": [WINDOW]})
    await rest(world)
    world.now = NOW.replace(minute=20)
    world.report = idle(world, None, demand_percent=None, replicas=(), longest_start_seconds=600.0)
    await world.settle()
    assert world.replicas == 2
    assert world.status["autoscaling"]["startedWindow"] == "2026-01-02T03:30:00Z"

    for name in ("llama-1", "llama-2"):
        see_replica(world, name)
    replicas = tuple(ReplicaLoad(pod=f"llama-{it}", is_ready=True) for it in (1, 2))
    for minute in (25, 29, 45):
        world.now = NOW.replace(minute=minute)
        world.report = idle(world, 3600.0, replicas=replicas, longest_start_seconds=20.0)
        await world.settle()
        assert world.replicas == 2
    assert "startedWindow" not in world.status["autoscaling"]


@pytest.mark.parametrize(
    ("waits", "starts", "seconds"),
    [((), (), 120 + 15), ((400.0, 0.0), (50.0, 65.0), 465 + 15)],
    ids=["nothing is learned", "the calibration is stored"],
)
async def test_without_a_report_replicas_start_by_the_stored_calibration(
    world: World, waits: tuple[float, ...], starts: tuple[float, ...], seconds: int
) -> None:
    await serve(world, "Direct", idle={"schedule": [WINDOW]})
    await rest(world)
    world.report = None
    learned = Calibration(
        step_seconds=(6e-3, 3e-5, 2e-5, 5e-8),
        capacity_factor=1.0,
        cold_start_seconds=starts,
        node_wait_seconds=waits,
        prompt_lengths=(1.0,) * LENGTH_BUCKETS,
        answer_lengths=(1.0,) * LENGTH_BUCKETS,
        mean_prompt_tokens=1000.0,
        mean_answer_tokens=200.0,
        computed_share=0.5,
        kv_tokens_per_sequence=1200.0,
    ).model_dump(by_alias=True, mode="json", exclude_none=True)
    begin = NOW.replace(minute=30, second=0)
    for before, replicas in ((seconds + 1, 0), (seconds, 2)):
        live = world.cluster.objects[LLMSERVICES, "llama"]
        # The fake cluster drops what another client has stored in the status with each write.
        autoscaling = {**live["status"]["autoscaling"], "calibration": learned}
        world.see({**live, "status": {**live["status"], "autoscaling": autoscaling}})
        world.now = begin - timedelta(seconds=before)
        await world.settle()
        assert world.replicas == replicas


async def test_a_window_has_no_effect_on_recommendations(world: World) -> None:
    world.report = idle(world, None)
    await world.serve(**by("Direct", mode="Recommend", idle={"schedule": [WINDOW]}))
    world.now = NOW.replace(minute=45)
    world.report = idle(world, None)
    await world.settle()
    assert world.status["autoscaling"]["desiredReplicas"] == 1
    assert "idle.schedule" not in world.condition("AutoscalingActive")["message"]


async def test_a_window_that_requires_no_more_than_the_minimum_is_not_mentioned(
    world: World,
) -> None:
    await world.serve(**by("Direct", minReplicas=3, idle={"schedule": [WINDOW]}))
    for minute in (10, 45):
        world.now = NOW.replace(minute=minute)
        world.report = idle(world, None)
        await world.settle()
        assert "idle.schedule" not in world.condition("AutoscalingActive")["message"]


@pytest.mark.parametrize(("load", "names_window"), [(10.0, True), (120.0, False)])
async def test_a_decision_names_the_window_only_if_the_load_requires_fewer_replicas(
    world: World, load: float, names_window: bool
) -> None:
    world.report = idle(world, None)
    await world.serve(**by("Direct", idle={"schedule": [WINDOW]}))
    world.now = NOW.replace(minute=45)
    world.report = idle(world, None, demand_percent=load)
    await world.settle()
    assert world.replicas == 2
    reason = world.status["autoscaling"]["decisions"][0]["reason"]
    assert ("a window of idle.schedule" in reason) == names_window


async def test_the_schedule_is_read_again_only_when_its_result_may_change(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[datetime] = []

    def count(*arguments: Any) -> Floor:
        read.append(world.now)
        return floor_of(*arguments)

    monkeypatch.setattr(scaler, "floor_of", count)
    await serve(world, "Direct", idle={"schedule": [WINDOW]})
    for second in range(30, 60):
        world.now = NOW.replace(second=second)
        await world.settle()
    assert len(read) == 1
    world.now = NOW.replace(minute=30)
    await world.settle()
    assert len(read) == 2
    world.report = idle(world, 0.0, longest_start_seconds=61.0)
    await world.settle()
    assert len(read) == 3
    world.now = NOW
    await world.settle()
    assert len(read) == 4

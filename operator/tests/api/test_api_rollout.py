"""Tests rollouts and drains by the cluster's controllers, without a scheduler and a kubelet."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES, PODS
from operator_support.processes import (
    Api,
    ApiError,
    OperatorProcess,
    condition,
    make_pods_ready,
    make_service,
    until_settled,
)
from shared_support.waiting import eventually, holds_for

SURGE = {"maxSurge": 1, "maxUnavailable": 0}
IN_PLACE = {"maxSurge": 0, "maxUnavailable": 1}
RESTART = {"spec": {"engine": {"maxModelLen": 512}}}


def pods(api: Api, namespace: str, name: str) -> list[dict[str, Any]]:
    found = api.list_all(PODS, namespace, labelSelector=f"llmservice.dev/name={name}")
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def names_of(found: list[dict[str, Any]]) -> set[str]:
    return {pod["metadata"]["name"] for pod in found}


def strategy(api: Api, namespace: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(DEPLOYMENTS, namespace, name)["spec"]["strategy"]
    return found["rollingUpdate"]  # type: ignore[no-any-return]


def progressing(api: Api, namespace: str, name: str) -> dict[str, Any]:
    return condition(api.get(LLMSERVICES, namespace, name), "Progressing")


def serve(api: Api, namespace: str, name: str, replicas: int, **spec: Any) -> set[str]:
    """Start a service and wait for this number of ready replicas; return the names of its pods."""
    service = make_service(name, namespace, replicas=replicas, accelerator={"count": 1}, **spec)
    api.create(LLMSERVICES, service)
    eventually(lambda: len(pods(api, namespace, name)) == replicas)
    until_ready(api, namespace, name)
    return names_of(pods(api, namespace, name))


def until_ready(api: Api, namespace: str, name: str) -> None:
    def ready() -> bool:
        make_pods_ready(api, namespace, name)
        service = api.get(LLMSERVICES, namespace, name)
        summary = condition(service, "Ready")
        assert summary["observedGeneration"] == service["metadata"]["generation"]
        return bool(summary["status"] == "True")

    eventually(ready)


def find_no_gpu(api: Api, namespace: str, pod: str, seconds: float) -> None:
    """Report a pod as the scheduler does if it has found no GPU for `seconds` seconds."""
    now = datetime.now(UTC)  # noqa: TID251 - the operator compares it with its own clock
    since = now - timedelta(seconds=seconds)
    unschedulable = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        "lastTransitionTime": since.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    status = {"phase": "Pending", "conditions": [unschedulable]}
    api.patch(PODS, namespace, pod, {"status": status}, "status")


@pytest.mark.causes("RolloutInPlace")
@pytest.mark.parametrize("replicas", [1, 2])
def test_an_old_replica_ends_first_once_no_gpu_was_free_for_a_minute(
    api: Api, operator: OperatorProcess, served: str, name: str, replicas: int
) -> None:
    old = serve(api, served, name, replicas)
    assert strategy(api, served, name) == SURGE
    api.patch(LLMSERVICES, served, name, RESTART)
    (new,) = eventually(lambda: names_of(pods(api, served, name)) - old)
    # Two seconds of the wait are left, and no event will report their end. The operator's next
    # regular pass after a minute would be too late.
    find_no_gpu(api, served, new, 58)
    eventually(lambda: strategy(api, served, name) == IN_PLACE, 30)
    eventually(lambda: len(names_of(pods(api, served, name)) & old) == replicas - 1)
    said = eventually(lambda: progressing(api, served, name))
    assert (said["status"], said["reason"]) == ("True", "RolloutInPlace")
    assert ("the service is unavailable in between" in said["message"]) is (replicas == 1)

    def replaced() -> bool:
        make_pods_ready(api, served, name)
        return not names_of(pods(api, served, name)) & old

    eventually(replaced)
    until_ready(api, served, name)
    eventually(lambda: strategy(api, served, name) == SURGE)
    until_settled(operator)
    assert "rollout" not in api.get(LLMSERVICES, served, name)["status"]
    history = api.request(
        "GET",
        f"/apis/apps/v1/namespaces/{served}/replicasets",
        labelSelector=f"llmservice.dev/name={name}",
    )
    assert len(history["items"]) == 2


def test_a_rolling_update_waits_for_a_gpu_as_long_as_it_takes(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    old = serve(api, served, name, 1, rolloutStrategy={"type": "RollingUpdate"})
    api.patch(LLMSERVICES, served, name, RESTART)
    (new,) = eventually(lambda: names_of(pods(api, served, name)) - old)
    find_no_gpu(api, served, new, 3600)
    eventually(
        lambda: condition(api.get(LLMSERVICES, served, name), "Ready")["reason"] == "WaitingForGPU"
    )
    holds_for(2, lambda: old <= names_of(pods(api, served, name)))
    assert strategy(api, served, name) == SURGE


def test_a_strategy_changes_no_pod(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    before = serve(api, served, name, 1)
    for wanted in ({"type": "Recreate"}, {"type": "RollingUpdate", "maxSurge": "50%"}, {}):
        replace = [{"op": "add", "path": "/spec/rolloutStrategy", "value": wanted}]
        path = LLMSERVICES.path(served, name)
        api.request("PATCH", path, replace, "application/json-patch+json")
        until_settled(operator)
        kind = api.get(DEPLOYMENTS, served, name)["spec"]["strategy"]["type"]
        assert kind == ("Recreate" if wanted.get("type") == "Recreate" else "RollingUpdate")
    assert names_of(pods(api, served, name)) == before


def evict(api: Api, namespace: str, pod: str) -> bool:
    """Request one eviction, as `kubectl drain` does; return whether the budget allowed it."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    try:
        api.request("POST", PODS.path(namespace, pod, "eviction"), body)
    except ApiError as refused:
        if refused.status != 429:
            raise
        return False
    return True


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_node_drain_takes_one_replica_at_a_time_and_finishes(
    api: Api, operator: OperatorProcess, served: str, name: str, replicas: int
) -> None:
    before = serve(api, served, name, replicas)
    first, *others = sorted(before)
    eventually(lambda: evict(api, served, first))
    if others:
        # The successor of the evicted pod is not ready, so the budget is used up.
        assert not evict(api, served, others[0])
    for pod in others:

        def drained(pod: str = pod) -> bool:
            make_pods_ready(api, served, name)
            return evict(api, served, pod)

        eventually(drained)
    eventually(lambda: len(names_of(pods(api, served, name)) - before) == replicas)


def test_a_replica_that_is_not_ready_is_never_protected(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    service = make_service(name, served, replicas=2, podDisruptionBudget={"minAvailable": 1})
    api.create(LLMSERVICES, service)
    found = eventually(lambda: names_of(pods(api, served, name)))
    eventually(lambda: evict(api, served, min(found)))

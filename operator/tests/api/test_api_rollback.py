"""Tests failed rollouts by the cluster's own controllers, without a scheduler and a kubelet."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.api.fields import timestamp
from llmservice_operator.kinds import LLMSERVICES, PODS
from operator_support.forked import ForkedOperator
from operator_support.processes import (
    Api,
    OperatorProcess,
    condition,
    free_the_lease,
    image,
    make_pods_ready,
    make_service,
    until_settled,
    utc_now,
)
from shared_support.waiting import eventually

ROLLS_BACK = {"rolloutStrategy": {"autoRollback": True}}
NONSENSE = "32 of 32 log-probabilities are not finite."


def pods(api: Api, namespace: str, name: str) -> set[str]:
    found = api.list_all(PODS, namespace, labelSelector=f"llmservice.dev/name={name}")
    return {
        each["metadata"]["name"] for each in found if "deletionTimestamp" not in each["metadata"]
    }


def ready(api: Api, namespace: str, name: str) -> dict[str, Any]:
    service = api.get(LLMSERVICES, namespace, name)
    found = condition(service, "Ready")
    assert found["observedGeneration"] == service["metadata"]["generation"]
    return found


def status(api: Api, namespace: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(LLMSERVICES, namespace, name)["status"]
    return found


def until_serving(api: Api, namespace: str, name: str) -> set[str]:
    def serving() -> bool:
        make_pods_ready(api, namespace, name)
        return bool(ready(api, namespace, name)["status"] == "True")

    eventually(serving)
    eventually(lambda: status(api, namespace, name)["completeRevision"])
    return pods(api, namespace, name)


def change(api: Api, namespace: str, name: str, **spec: Any) -> None:
    api.patch(LLMSERVICES, namespace, name, {"spec": spec})


def fail_the_smoke_test(api: Api, namespace: str, pod: str) -> None:
    """Report the pod as the kubelet does after the model server exits with SmokeTestFailed."""
    since = timestamp(utc_now() - timedelta(seconds=40))
    said = json.dumps({"format": 2, "reason": "SmokeTestFailed", "message": NONSENSE})
    server = {
        "name": "server",
        "image": "registry/x",
        "imageID": "",
        "ready": False,
        "started": False,
        "restartCount": 1,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": said}},
    }
    conditions = [
        {"type": "PodScheduled", "status": "True"},
        {"type": "Ready", "status": "False", "lastTransitionTime": since},
    ]
    told = {"phase": "Running", "conditions": conditions, "containerStatuses": [server]}
    api.patch(PODS, namespace, pod, {"status": told}, "status")


def fail_the_rollout(api: Api, namespace: str, name: str, old: set[str]) -> None:
    (new,) = eventually(lambda: pods(api, namespace, name) - old)
    fail_the_smoke_test(api, namespace, new)


def until_rolled_back(api: Api, namespace: str, name: str, old: set[str]) -> None:
    eventually(
        lambda: ready(api, namespace, name)["reason"] == "RolledBack",
        20,
        lambda: json.dumps(api.get(LLMSERVICES, namespace, name)["status"]),
    )
    eventually(lambda: pods(api, namespace, name) == old)


@pytest.mark.causes("RolledBack")
def test_earlier_pods_return_and_stay_until_the_spec_requires_others(
    api: Api, namespace: str, name: str, log: Path
) -> None:
    with ForkedOperator(log, namespace, WATCH_NAMESPACES=namespace) as operator:
        operator.until_leading()
        api.create(LLMSERVICES, make_service(name, namespace, **ROLLS_BACK))
        old = until_serving(api, namespace, name)
        good = image(api, namespace, name)

        change(api, namespace, name, engine={"image": "registry/bad:1", "maxModelLen": 512})
        fail_the_rollout(api, namespace, name, old)
        until_rolled_back(api, namespace, name, old)

        assert NONSENSE in ready(api, namespace, name)["message"]
        assert condition(api.get(LLMSERVICES, namespace, name), "Available")["status"] == "True"
        assert image(api, namespace, name) == good
        eventually(lambda: status(api, namespace, name)["engine"]["image"] == good)
        until_settled(operator)
        operator.kill()

    free_the_lease(api, namespace)
    with ForkedOperator(log, namespace, WATCH_NAMESPACES=namespace) as operator:
        operator.until_leading()
        eventually(lambda: operator.metric("controller_runtime_reconcile_total") >= 1)
        until_settled(operator)
        assert operator.writes() == 0
        assert ready(api, namespace, name)["reason"] == "RolledBack"

        # A change that concerns no pod does not start the failed pods again.
        change(api, namespace, name, replicas=2)
        eventually(lambda: len(pods(api, namespace, name)) == 2)
        assert image(api, namespace, name) == good
        # The status is written after the children.
        eventually(lambda: ready(api, namespace, name)["reason"] == "RolledBack")
        make_pods_ready(api, namespace, name)
        until_settled(operator)
        both = pods(api, namespace, name)

        # The next faulty change is rolled out, and then undone too.
        change(api, namespace, name, engine={"image": "registry/bad:2"})
        fail_the_rollout(api, namespace, name, both)
        until_rolled_back(api, namespace, name, both)

        # The earlier spec needs no new pods, because its pods still run.
        change(api, namespace, name, engine={"image": None, "maxModelLen": None})
        assert until_serving(api, namespace, name) == both
        assert "rollback" not in status(api, namespace, name)


def test_without_an_earlier_complete_rollout_a_failed_one_stays(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served, **ROLLS_BACK))
    fail_the_rollout(api, served, name, set())
    eventually(lambda: ready(api, served, name)["reason"] == "SmokeTestFailed")
    until_settled(operator)
    assert {"rollback", "completeRevision"}.isdisjoint(status(api, served, name))

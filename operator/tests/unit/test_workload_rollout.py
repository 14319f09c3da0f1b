"""Tests that a rollout of type Auto replaces pods in place while no accelerator is free."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Context, build_all
from llmservice_operator.status import build_status
from llmservice_operator.workload import (
    EnginePin,
    Observation,
    decide_rollout,
    observe_service,
    resolve_pin,
)
from operator_support.services import NOW, SETTINGS, a_deployment, a_pod, a_service, one

PIN = EnginePin("registry/gpu:1", "0.32.0", "nvidia")
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
SURGE = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
IN_PLACE = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
RECORDED = {"rollout": {"inPlaceSince": "2026-01-02T03:00:00Z"}}


def waiting_since(seconds: float, replicas: int = 2, updated: int = 1) -> Observation:
    return Observation(
        desired=1,
        replicas=replicas,
        updated_replicas=updated,
        ready_replicas=replicas - updated,
        waits_for_accelerator_since=NOW - timedelta(seconds=seconds),
    )


def workload(service: LLMService) -> Manifest:
    manifests = build_all(Context.of(service, SETTINGS, resolve_pin(service, None, SETTINGS)))
    found: Manifest = one("Deployment", manifests)["spec"]
    return found


DONE = Observation(replicas=1, updated_replicas=1, ready_replicas=1, is_rolled_out=True)
LOADING = Observation(replicas=1, updated_replicas=1)

DECISIONS: dict[str, tuple[dict[str, Any], dict[str, Any], Observation, bool, float | None]] = {
    # spec, earlier status, observation, whether old pods end first, seconds until the next pass
    "nothing waits": ({}, {}, DONE, False, None),
    "a new pod has just begun to wait": ({}, {}, waiting_since(0), False, 60),
    "a new pod has waited for a while": ({}, {}, waiting_since(59), False, 1),
    "a new pod has waited long enough": ({}, {}, waiting_since(60), True, None),
    "the scheduler's clock is ahead": ({}, {}, waiting_since(-600), False, 60),
    "a pod waits, but no old one could give way": (
        {},
        {},
        waiting_since(600, replicas=1, updated=1),
        False,
        None,
    ),
    "it was recorded, the old pod is gone, the new one loads": ({}, RECORDED, LOADING, True, None),
    "it was recorded, the controller has not seen the change": (
        {},
        RECORDED,
        Observation(replicas=2),
        True,
        None,
    ),
    "it was recorded and the rollout has ended": ({}, RECORDED, DONE, False, None),
    "the user rather waits": (
        {"rolloutStrategy": {"type": "RollingUpdate"}},
        {},
        waiting_since(600),
        False,
        None,
    ),
    "the user changed his mind meanwhile": (
        {"rolloutStrategy": {"type": "RollingUpdate"}},
        RECORDED,
        waiting_since(600),
        False,
        None,
    ),
}


@pytest.mark.parametrize(
    ("spec", "before", "seen", "in_place", "requeue_after"),
    DECISIONS.values(),
    ids=DECISIONS.keys(),
)
def test_old_pods_end_first_only_while_no_accelerator_is_free_for_a_new_one(
    spec: dict[str, Any],
    before: dict[str, Any],
    seen: Observation,
    in_place: bool,
    requeue_after: float | None,
) -> None:
    decision = decide_rollout(a_service(spec, status=before), seen, NOW)
    assert (decision.status is not None) is in_place
    assert decision.requeue_after_seconds == requeue_after
    update = build_status(a_service(spec, status=before), PIN, seen, NOW)
    assert ("rollout" in update.status) is in_place
    assert update.requeue_after_seconds == requeue_after


def test_the_record_outlives_the_operator_and_goes_with_the_rollout() -> None:
    status: dict[str, Any] = {}
    strategies = []
    timeline = [
        (DONE, 0),
        (waiting_since(1), 1),
        (waiting_since(61), 61),
        # The controller has not seen the Deployment's new strategy yet.
        (Observation(replicas=2, ready_replicas=1), 62),
        (LOADING, 63),
        (LOADING, 600),
        (DONE, 601),
        (DONE, 602),
    ]
    for seen, seconds in timeline:
        # Only the status is carried from one pass to the next.
        service = a_service(status=status)
        strategies.append(workload(service)["strategy"])
        moment: datetime = NOW + timedelta(seconds=seconds if seconds > 61 else 0)
        status = build_status(service, PIN, seen, moment).status
    assert strategies == [SURGE, SURGE, SURGE, IN_PLACE, IN_PLACE, IN_PLACE, IN_PLACE, SURGE]


@pytest.mark.parametrize(
    ("wanted", "strategy"),
    [
        ({}, SURGE),
        ({"type": "Auto"}, SURGE),
        ({"type": "RollingUpdate"}, SURGE),
        (
            {"type": "RollingUpdate", "maxSurge": "25%", "maxUnavailable": 2},
            {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 2}},
        ),
        (
            {"type": "RollingUpdate", "maxSurge": 0, "maxUnavailable": 1},
            IN_PLACE,
        ),
        ({"type": "Recreate"}, {"type": "Recreate"}),
    ],
    ids=["nothing", "Auto", "RollingUpdate", "by the user", "in place", "Recreate"],
)
def test_the_strategy_is_the_users_and_changes_no_pod_template(
    wanted: dict[str, Any], strategy: dict[str, Any]
) -> None:
    found = workload(a_service({"rolloutStrategy": wanted}))
    assert found["strategy"] == strategy
    assert found["template"] == workload(a_service())["template"]
    recorded = workload(a_service({"rolloutStrategy": wanted}, status=RECORDED))
    assert recorded["template"] == found["template"]


MADE = {"type": "PersistentVolumeClaim", "size": "9Gi"}


@pytest.mark.parametrize(
    ("cache", "rollout", "strategy"),
    [
        ({**MADE, "accessModes": ["ReadWriteOnce"]}, {}, IN_PLACE),
        ({**MADE, "accessModes": ["ReadWriteOnce"]}, {"type": "RollingUpdate"}, SURGE),
        ({**MADE, "accessModes": ["ReadWriteOnce", "ReadWriteMany"]}, {}, SURGE),
        (MADE, {}, SURGE),
        ({"type": "PersistentVolumeClaim", "claimName": "models"}, {}, SURGE),
        ({"type": "Ephemeral", "size": "9Gi"}, {}, SURGE),
    ],
    ids=["one node", "the user rather waits", "both", "every node", "unknown", "no claim"],
)
def test_a_claim_that_one_node_alone_can_mount_lets_the_old_pod_end_first(
    cache: dict[str, Any], rollout: dict[str, Any], strategy: dict[str, Any]
) -> None:
    spec = {"model": {"uri": "hf://org/model", "cache": cache}, "rolloutStrategy": rollout}
    assert workload(a_service(spec))["strategy"] == strategy


def test_the_deadline_is_the_users_or_longer_than_any_start() -> None:
    deadline = {"rolloutStrategy": {"progressDeadlineSeconds": 600}}
    assert workload(a_service(deadline))["progressDeadlineSeconds"] == 600
    assert workload(a_service())["progressDeadlineSeconds"] == 3000


@pytest.mark.parametrize(("replicas", "downtime"), [(1, True), (2, False)])
def test_the_conditions_say_that_old_replicas_end_first_and_what_it_costs(
    replicas: int, downtime: bool
) -> None:
    service = a_service({"replicas": replicas}, status=RECORDED)
    seen = Observation(desired=replicas, replicas=replicas, updated_replicas=1)
    conditions = {
        each["type"]: each for each in build_status(service, PIN, seen, NOW).status["conditions"]
    }
    for kind in ("Ready", "Progressing"):
        assert conditions[kind]["reason"] == "RolloutInPlace"
        message = conditions[kind]["message"]
        assert ("With one replica, the service is unavailable in between." in message) is downtime
        assert message.endswith(f" {Reason.ROLLOUT_IN_PLACE.hint}")


def test_a_pod_waits_for_an_accelerator_since_the_scheduler_first_said_so() -> None:
    old = a_pod(ready=True, template="old", created="2026-01-01T00:00:00Z")
    new = a_pod(unscheduled=NO_GPU)
    new["status"]["conditions"][-1]["lastTransitionTime"] = "2026-01-02T03:03:05Z"
    since = observe_service(
        a_service(), a_deployment(2, 1, 1), (old, new)
    ).waits_for_accelerator_since
    assert since == NOW - timedelta(seconds=60)


@pytest.mark.parametrize("order", [1, -1], ids=["old one first", "new one first"])
def test_a_pod_that_waits_is_seen_beside_one_created_in_the_same_second(order: int) -> None:
    new = a_pod(unscheduled=NO_GPU)
    new["status"]["conditions"][-1]["lastTransitionTime"] = "2026-01-02T03:03:05Z"
    pods = (a_pod(ready=True, template="old"), new)[::order]
    seen = observe_service(a_service(), a_deployment(2, 1, 1), pods)
    assert seen.waits_for_accelerator_since is not None


@pytest.mark.parametrize(
    ("spec", "unscheduled"),
    [
        ({}, "0/1 nodes are available: 1 Insufficient memory."),
        ({"accelerator": {"type": "cpu"}}, "0/1 nodes are available: 1 Insufficient cpu."),
        ({}, None),
    ],
    ids=["memory", "a CPU", "it runs"],
)
def test_waiting_for_anything_else_frees_no_accelerator(
    spec: dict[str, Any], unscheduled: str | None
) -> None:
    pods = (a_pod(unscheduled=unscheduled),)
    seen = observe_service(a_service(spec), a_deployment(2, 1, 1), pods)
    assert seen.waits_for_accelerator_since is None

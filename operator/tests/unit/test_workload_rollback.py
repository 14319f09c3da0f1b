"""Tests that the pods of the last complete rollout return when a later rollout fails."""

import copy
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.api.reasons import Reason
from llmservice_operator.errors import ClusterError
from llmservice_operator.kinds import DEPLOYMENTS, PODS, REPLICA_SETS
from llmservice_operator.status import build_status
from llmservice_operator.workload import (
    EnginePin,
    Observation,
    Problem,
    decide_rollback,
    observe_service,
)
from operator_support.services import NOW, a_deployment, a_pod, a_service
from operator_support.world import World

ROLLS_BACK: dict[str, Any] = {"rolloutStrategy": {"autoRollback": True}}
BAD: dict[str, Any] = {"engine": {"maxModelLen": 512}}
WORSE: dict[str, Any] = {"engine": {"image": "registry/bad:1"}}
RECORDED: dict[str, Any] = {
    "time": "2026-01-02T03:00:00Z",
    "revision": "good",
    "failedPods": "digest",
    "reason": "CrashLoop",
    "message": "It ended.",
}
PIN = EnginePin("registry/gpu:1", "0.32.0", "nvidia")


def failing(reason: Reason = Reason.SMOKE_TEST_FAILED, seconds: float = 30) -> Observation:
    return Observation(
        desired=1,
        replicas=2,
        updated_replicas=1,
        ready_replicas=1,
        revision="bad",
        not_ready_since=NOW - timedelta(seconds=seconds),
        problem=Problem(reason, "NaN."),
    )


DECISIONS: dict[str, tuple[Observation, bool, float | None]] = {
    # the observation, whether the earlier pods return, the seconds until the next pass
    "a wrong answer": (failing(), True, None),
    "a wrong answer a moment ago": (failing(seconds=29), False, 1),
    "a clock that is ahead": (failing(seconds=-600), False, 30),
    "a crash": (failing(Reason.CRASH_LOOP), True, None),
    "an image that does not exist": (failing(Reason.IMAGE_PULL_ERROR), True, None),
    "a Secret that does not exist": (failing(Reason.SECRET_MISSING), True, None),
    "a ConfigMap that does not exist": (failing(Reason.CONFIG_MAP_MISSING), True, None),
    "a model that loads for long": (failing(Reason.LOADING_MODEL, 9999), False, None),
    "a cluster without a free GPU": (failing(Reason.WAITING_FOR_GPU, 9999), False, None),
    "a rollout that is stuck": (
        replace(failing(Reason.WAITING_FOR_GPU), is_stuck=True),
        True,
        None,
    ),
    "a quota that admits no pod at all": (
        replace(failing(Reason.QUOTA_EXCEEDED), is_stuck=True, not_ready_since=None),
        True,
        None,
    ),
    "a replica that fails long after its rollout": (
        replace(failing(), revision="good"),
        False,
        None,
    ),
    "a controller that has not named the new pods": (replace(failing(), revision=""), False, None),
    "a rollout without a problem": (replace(failing(), problem=None), False, None),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_the_observation_decides_on_a_rollback(case: str) -> None:
    seen, returns, again = DECISIONS[case]
    service = a_service(ROLLS_BACK, status={"completeRevision": "good"})
    found = decide_rollback(service, seen, "digest", NOW, may_begin=True)
    assert (found.status is not None, found.requeue_after_seconds) == (returns, again)
    if found.status is not None:
        assert (found.status.revision, found.status.failed_pods) == ("good", "digest")


@pytest.mark.parametrize(
    ("spec", "status", "pods", "may_begin"),
    [
        ({}, {"completeRevision": "good"}, "digest", True),
        (ROLLS_BACK, {}, "digest", True),
        (ROLLS_BACK, {"completeRevision": "good"}, None, True),
        (ROLLS_BACK, {"completeRevision": "good"}, "digest", False),
    ],
    ids=["not asked for", "never complete", "pods that cannot be built", "a pass that failed"],
)
def test_no_rollback_begins(
    spec: dict[str, Any], status: dict[str, Any], pods: str | None, may_begin: bool
) -> None:
    service = a_service(spec, status=status)
    assert decide_rollback(service, failing(), pods, NOW, may_begin=may_begin).status is None


@pytest.mark.parametrize(
    ("spec", "pods", "holds"),
    [
        (ROLLS_BACK, "digest", True),
        (ROLLS_BACK, None, True),
        (ROLLS_BACK, "other", False),
        ({}, "digest", False),
    ],
    ids=["the same pods", "pods that cannot be built", "other pods", "not asked for any more"],
)
def test_a_rollback_holds_until_the_spec_asks_for_other_pods(
    spec: dict[str, Any], pods: str | None, holds: bool
) -> None:
    service = a_service(spec, status={"rollback": RECORDED})
    found = decide_rollback(service, Observation(revision="good"), pods, NOW, may_begin=True)
    assert (found.status is not None) is holds


def test_the_status_names_the_cause_and_what_to_change() -> None:
    seen = Observation(
        desired=1,
        replicas=1,
        updated_replicas=1,
        ready_replicas=1,
        is_rolled_out=True,
        has_loaded_model=True,
        revision="good",
        complete_revision="good",
    )
    service = a_service(ROLLS_BACK, status={"rollback": RECORDED})
    status = build_status(service, PIN, seen, NOW, pods="digest").status
    found = {each["type"]: each for each in status["conditions"]}
    for kind in ("Ready", "Progressing", "ModelReady"):
        assert (found[kind]["status"], found[kind]["reason"]) == ("False", "RolledBack")
    assert found["Available"]["status"] == "True"
    assert "The cause was CrashLoop: It ended." in found["Ready"]["message"]
    assert found["Ready"]["message"].endswith(Reason.ROLLED_BACK.hint)
    suspended = a_service({**ROLLS_BACK, "suspend": True}, status={"rollback": RECORDED})
    status = build_status(suspended, PIN, Observation(), NOW, pods="digest").status
    found = {each["type"]: each for each in status["conditions"]}
    assert found["Ready"]["reason"] == "Suspended"
    assert status["rollback"] == RECORDED


COMPLETE: dict[str, Any] = {"reason": "NewReplicaSetAvailable"}


@pytest.mark.parametrize(
    ("numbers", "condition", "observed", "revision"),
    [
        ({"ready": 1}, COMPLETE, 2, "x"),
        # The status describes the earlier manifest.
        ({"ready": 1}, COMPLETE, 1, "x"),
        # The controller names a new ReplicaSet before it updates the numbers.
        ({"ready": 1}, {"reason": "NewReplicaSetCreated"}, 1, None),
        ({"ready": 0}, COMPLETE, 2, None),
        ({"ready": 2, "replicas": 2, "updated": 1}, COMPLETE, 2, None),
        # A suspended service has no pods that could be complete.
        ({"ready": 0, "replicas": 0, "updated": 0}, COMPLETE, 2, None),
        ({"ready": 1}, {"reason": "DeploymentPaused"}, 2, None),
    ],
)
def test_a_rollout_is_complete_when_the_controller_says_so_of_ready_replicas(
    numbers: dict[str, int], condition: dict[str, Any], observed: int, revision: str | None
) -> None:
    said = {"type": "Progressing", "status": "True", "message": 'ReplicaSet "qwen-x" is done.'}
    live = a_deployment(
        **numbers, conditions=({**said, **condition},), observed_generation=observed
    )
    assert observe_service(a_service(), live, []).complete_revision == revision


class Rollouts(World):
    """A cluster in which the test acts as the Deployment controller and the kubelet."""

    @property
    def deployment(self) -> dict[str, Any]:
        return self.cluster.objects[DEPLOYMENTS, "llama"]

    @property
    def template(self) -> dict[str, Any]:
        found: dict[str, Any] = self.deployment["spec"]["template"]
        return found

    def roll_out(self, revision: str, *, ready: int, replicas: int = 1) -> None:
        """Make the ReplicaSet of the present template, and report its progress."""
        live = self.deployment
        template = copy.deepcopy(live["spec"]["template"])
        template["metadata"]["labels"]["pod-template-hash"] = revision
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llama", "controller": True}
        self.cluster.put(
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": {
                    "name": f"llama-{revision}",
                    "namespace": "team",
                    "annotations": live["metadata"]["annotations"],
                    "ownerReferences": [{**owner, "uid": live["metadata"]["uid"]}],
                },
                "spec": {"template": template},
            }
        )
        message = f'ReplicaSet "llama-{revision}" is progressing.'
        has_ended = ready == replicas
        reason = "NewReplicaSetAvailable" if has_ended else "ReplicaSetUpdated"
        condition = {"type": "Progressing", "status": "True", "reason": reason, "message": message}
        status = {
            "observedGeneration": live["metadata"].get("generation", 0),
            "replicas": replicas,
            "updatedReplicas": 1,
            "readyReplicas": ready,
            "conditions": [condition],
        }
        self.see({**live, "status": status})

    def fail(self, revision: str) -> None:
        said = json.dumps({"format": 2, "reason": "SmokeTestFailed", "message": "NaN."})
        pod = a_pod(
            {"waiting": {"reason": "CrashLoopBackOff"}},
            template=revision,
            lastState={"terminated": {"exitCode": 1, "message": said}},
            restartCount=1,
        )
        labels = {**pod["metadata"]["labels"], names.SERVICE_LABEL: "llama"}
        metadata = {**pod["metadata"], "namespace": "team", "labels": labels}
        self.see({"apiVersion": "v1", "kind": "Pod", **pod, "metadata": metadata})
        self.roll_out(revision, ready=1, replicas=2)

    def end(self, revision: str) -> None:
        self.lose(PODS, f"qwen-{revision}-1")


@pytest.fixture
async def world() -> Rollouts:
    """Cluster with a service whose first rollout is complete."""
    made = Rollouts()
    await made.serve(**ROLLS_BACK)
    made.roll_out("good", ready=1)
    await made.settle()
    assert made.status["completeRevision"] == "good"
    return made


async def break_it(world: Rollouts, revision: str, **spec: Any) -> None:
    await world.serve(**ROLLS_BACK, **spec)
    world.fail(revision)
    await world.settle()


async def test_the_template_the_pin_and_the_number_of_replicas_are_right_after_a_rollback(
    world: Rollouts,
) -> None:
    good, engine = world.template, world.status["engine"]
    await break_it(world, "bad", **WORSE)
    assert world.template == good
    assert world.status["engine"]["image"] == engine["image"]
    assert world.deployment["metadata"]["annotations"][names.ENGINE_DEFAULT_FOR_ANNOTATION] == "cpu"
    world.end("bad")
    world.roll_out("good", ready=1)
    await world.serve(**ROLLS_BACK, **WORSE, replicas=3)
    assert world.template == good
    assert world.replicas == 3
    assert world.condition("Ready")["reason"] == "RolledBack"


async def test_a_new_operator_completes_a_rollback_that_was_only_recorded(world: Rollouts) -> None:
    good = world.template
    await world.serve(**ROLLS_BACK, **BAD)
    world.fail("bad")
    world.cluster.refusals[DEPLOYMENTS] = ClusterError("the operator dies", 500)
    with pytest.raises(ClusterError):
        await world.settle()
    assert world.status["rollback"]["revision"] == "good"
    assert world.template != good
    del world.cluster.refusals[DEPLOYMENTS]
    world.restart(keda=True)
    await world.settle()
    assert world.template == good
    world.cluster.writes.clear()
    world.restart(keda=True)
    await world.settle()
    assert world.cluster.writes == []


async def test_a_second_mistake_is_tried_and_undone(world: Rollouts) -> None:
    good = world.template
    await break_it(world, "bad", **BAD)
    world.end("bad")
    world.roll_out("good", ready=1)
    await world.serve(**ROLLS_BACK, **WORSE)
    assert world.template != good
    assert "rollback" not in world.status
    world.fail("worse")
    await world.settle()
    assert world.template == good
    assert world.status["rollback"]["revision"] == "good"


async def test_the_earlier_spec_ends_a_rollback_without_a_new_template(world: Rollouts) -> None:
    good = world.template
    await break_it(world, "bad", **BAD)
    world.end("bad")
    world.roll_out("good", ready=1)
    await world.serve(**ROLLS_BACK)
    assert world.template == good
    assert "rollback" not in world.status


async def test_pods_that_are_gone_are_not_waited_for(world: Rollouts) -> None:
    await world.serve(**ROLLS_BACK, **BAD)
    bad = world.template
    world.fail("bad")
    del world.cluster.objects[REPLICA_SETS, "llama-good"]
    await world.settle()
    assert world.template == bad
    assert world.condition("Ready")["reason"] == "SmokeTestFailed"
    assert {"rollback", "completeRevision"}.isdisjoint(world.status)


async def test_a_replica_set_of_another_owner_is_no_earlier_revision(world: Rollouts) -> None:
    await world.serve(**ROLLS_BACK, **BAD)
    bad = world.template
    world.fail("bad")
    kept = world.cluster.objects[REPLICA_SETS, "llama-good"]
    world.cluster.put({**kept, "metadata": {**kept["metadata"], "ownerReferences": []}})
    await world.settle()
    assert world.template == bad


async def test_a_rollback_that_cannot_be_read_leaves_the_pods(world: Rollouts) -> None:
    await break_it(world, "bad", **BAD)
    good = world.template
    kept = world.cluster.objects[REPLICA_SETS, "llama-good"]
    world.cluster.objects[REPLICA_SETS, "llama-good"] = {**kept, "metadata": {"name": 1}}
    await world.settle()
    assert world.template == good
    assert world.status["rollback"]["revision"] == "good"
    assert world.condition("Ready")["reason"] == "UnreadableObject"


async def test_no_pods_are_complete_while_a_suspended_service_changes(world: Rollouts) -> None:
    await world.serve(**ROLLS_BACK, **BAD, suspend=True)
    world.roll_out("bad", ready=0, replicas=0)
    await world.settle()
    assert world.status["completeRevision"] == "good"

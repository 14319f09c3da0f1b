"""Tests pods that are refused, do not start, do not end, or lose their node, with real messages."""

from collections.abc import Mapping
from typing import Any

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.api.fields import timestamp
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.status import RolloutStatus
from llmservice_operator.cluster.compact import Compactor
from llmservice_operator.status import build_status
from llmservice_operator.workload import (
    EnginePin,
    Observation,
    PodEvent,
    decide_rollout,
    observe_service,
)
from llmservice_operator.workload.refused_pods import fits_after_one_ends
from operator_support.pods import (
    FULL_CACHE,
    RUNNING,
    a_failed_pod,
    ago,
    an_old_pod,
    an_unstarted_pod,
    beside,
)
from operator_support.services import NOW, a_deployment, a_pod, a_service

PIN = EnginePin("registry/gpu:1", "0.32.0", "nvidia")


def seen(
    *pods: Manifest,
    events: tuple[PodEvent, ...] = (),
    spec: Mapping[str, Any] | None = None,
    **deployment: Any,
) -> Observation:
    named = {pod["metadata"]["name"]: events for pod in pods}
    return observe_service(a_service(spec), a_deployment(**deployment), pods, None, NOW, named)


def told(found: Observation) -> tuple[Reason | None, str]:
    return (None, "") if found.problem is None else (found.problem.reason, found.problem.message)


# Pods that the kubelet terminates.


LOW_DISK = (
    "The node was low on resource: ephemeral-storage. Threshold quantity: 10, available: 2Ki."
)
OVER_LIMIT = "Pod ephemeral local storage usage exceeds the total limit of containers 20Gi."
LOW_MEMORY = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 32Mi."
NO_DEVICE = (
    "Pod was rejected: Allocate failed due to no healthy devices present; cannot allocate "
    "unhealthy devices nvidia.com/gpu, which is unexpected"
)
NO_GPU_LEFT = (
    "Pod was rejected: Node didn't have enough resource: nvidia.com/gpu, requested: 1, used: 0, "
    "capacity: 0"
)
NO_CPU_LEFT = (
    "Pod was rejected: Node didn't have enough resource: cpu, requested: 8000, used: 1, "
    "capacity: 4000"
)
NO_TOPOLOGY = "Pod was rejected: Resources cannot be allocated with Topology locality"


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        ("Evicted", LOW_DISK, Reason.EPHEMERAL_STORAGE_EXCEEDED),
        ("Evicted", FULL_CACHE, Reason.EPHEMERAL_STORAGE_EXCEEDED),
        ("Evicted", OVER_LIMIT, Reason.EPHEMERAL_STORAGE_EXCEEDED),
        ("Evicted", LOW_MEMORY, Reason.EVICTED),
        ("UnexpectedAdmissionError", NO_DEVICE, Reason.DEVICE_UNAVAILABLE),
        ("OutOfnvidia.com/gpu", NO_GPU_LEFT, Reason.DEVICE_UNAVAILABLE),
        ("OutOfcpu", NO_CPU_LEFT, Reason.POD_REJECTED),
        ("TopologyAffinityError", NO_TOPOLOGY, Reason.POD_REJECTED),
        ("NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed", Reason.POD_REJECTED),
        ("NodeLost", "Node node-7 which was running pod qwen is unresponsive", Reason.NODE_LOST),
    ],
)
@pytest.mark.parametrize("successor", [a_pod(), a_pod(RUNNING, started=False)], ids=["none", "up"])
def test_a_pod_that_the_kubelet_terminated_has_its_reason_reported_despite_a_successor(
    reason: str, message: str, expected: Reason, successor: Manifest
) -> None:
    found, said = told(seen(a_failed_pod(reason, message), successor))
    assert found is expected
    assert message.rstrip(".") in said
    assert "node-7" in said
    assert said.endswith(expected.advice("qwen"))


def test_a_failure_is_reported_until_it_is_no_longer_recent() -> None:
    assert seen(a_failed_pod("Evicted", FULL_CACHE)).look_again_seconds == 60
    assert seen(a_failed_pod("Evicted", FULL_CACHE, seconds=3600)).look_again_seconds is None


def test_a_full_disk_names_the_size_of_the_cache() -> None:
    assert "spec.model.cache.size" in told(seen(a_failed_pod("Evicted", FULL_CACHE)))[1]


@pytest.mark.parametrize("reason", ["NodeShutdown", "Terminated", "Preempting", "", "Shutdown"])
def test_a_pod_that_ended_as_pods_should_is_no_problem(reason: str) -> None:
    failed = a_failed_pod(reason, "Pod was terminated in response to imminent node shutdown.")
    assert told(seen(failed))[0] is None


@pytest.mark.parametrize(
    "pod",
    [
        a_failed_pod("Evicted", FULL_CACHE, seconds=3600),
        a_failed_pod("Evicted", FULL_CACHE, template="old"),
        {
            **(failed := a_failed_pod("Evicted", FULL_CACHE)),
            "metadata": {**failed["metadata"], "deletionTimestamp": ago(1)},
        },
    ],
    ids=["an hour ago", "of an earlier template", "that is being deleted"],
)
def test_a_failed_pod_that_is_no_longer_relevant_is_not_reported(pod: Manifest) -> None:
    named = {"type": "Progressing", "status": "True", "message": 'ReplicaSet "qwen-new" is x.'}
    found = seen(pod, a_pod(RUNNING, started=False), conditions=(named,))
    assert told(found)[0] is Reason.LOADING_MODEL


def test_the_last_of_several_failures_is_reported() -> None:
    pods = (
        a_failed_pod("Evicted", FULL_CACHE, seconds=300),
        a_failed_pod("UnexpectedAdmissionError", NO_DEVICE, seconds=20),
    )
    assert told(seen(*pods))[0] is Reason.DEVICE_UNAVAILABLE
    assert told(seen(*pods[::-1]))[0] is Reason.DEVICE_UNAVAILABLE


def test_a_failure_is_as_recent_as_the_end_of_the_last_container() -> None:
    failed = a_failed_pod("Evicted", FULL_CACHE, seconds=3600)
    name, state = failed["spec"]["containers"][0]["name"], {"terminated": {"finishedAt": ago(60)}}
    failed["status"]["containerStatuses"] = [{"name": name, "state": state}]
    assert told(seen(failed))[0] is Reason.EPHEMERAL_STORAGE_EXCEEDED


def test_failures_that_are_over_do_not_hide_that_all_replicas_serve() -> None:
    pods = (a_failed_pod("Evicted", FULL_CACHE), a_pod(RUNNING, ready=True))
    found = seen(*pods, ready=1)
    status = build_status(a_service(), PIN, found, NOW).status
    assert status["conditions"][0]["status"] == "True"


# Pods that are bound to a node but do not start.


SCHEDULED = PodEvent("Normal", "Scheduled", "Successfully assigned team/qwen to node-7")
MULTI_ATTACH = PodEvent(
    "Warning",
    "FailedAttachVolume",
    'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) qwen-old-1',
)
TIMED_OUT = PodEvent(
    "Warning", "FailedMount", "Unable to attach or mount volumes: timed out waiting"
)
NO_SANDBOX = PodEvent(
    "Warning", "FailedCreatePodSandBox", "Failed to create pod sandbox: no IP address is left"
)
NO_KEYS = PodEvent(
    "Warning", "FailedMount", 'MountVolume.SetUp failed for "api-keys": secret "keys" not found'
)
PULLING = PodEvent("Normal", "Pulling", 'Pulling image "registry/gpu:1"')
ATTACHED = PodEvent("Normal", "SuccessfulAttachVolume", "AttachVolume.Attach succeeded")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((SCHEDULED, MULTI_ATTACH), Reason.VOLUME_IN_USE),
        ((SCHEDULED, MULTI_ATTACH, TIMED_OUT), Reason.VOLUME_IN_USE),
        ((MULTI_ATTACH, ATTACHED, TIMED_OUT), Reason.POD_NOT_STARTING),
        ((SCHEDULED, NO_SANDBOX), Reason.POD_NOT_STARTING),
        ((SCHEDULED, NO_KEYS), Reason.SECRET_MISSING),
        ((SCHEDULED, NO_SANDBOX, PULLING), None),
        ((SCHEDULED,), None),
        ((), None),
    ],
)
def test_a_pod_that_does_not_start_within_minutes_says_why_by_its_events(
    events: tuple[PodEvent, ...], expected: Reason | None
) -> None:
    found, said = told(seen(an_unstarted_pod(180), events=events))
    assert found is expected
    if expected is not None:
        assert said.endswith(expected.advice("qwen"))
    if expected in (Reason.VOLUME_IN_USE, Reason.POD_NOT_STARTING):
        assert "node-7" in said


def test_a_pod_that_has_just_been_scheduled_is_given_time() -> None:
    found = seen(an_unstarted_pod(30), events=(SCHEDULED, MULTI_ATTACH))
    assert found.problem is None
    assert found.look_again_seconds == 90


def test_a_pod_that_its_node_does_not_acknowledge_is_on_a_lost_node() -> None:
    assert told(seen(an_unstarted_pod(200, acknowledged=False)))[0] is None
    found, said = told(seen(an_unstarted_pod(400, acknowledged=False)))
    assert found is Reason.NODE_LOST
    assert "node-7" in said


# Pods that are not Ready for a reason outside the model server.


PROXY = {"name": "istio-proxy", "ready": False, "state": {"running": {}}}
CRASHING = {
    "name": "istio-init",
    "ready": False,
    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}},
}


def test_a_lost_node_is_reported_and_not_a_server_that_hangs() -> None:
    found, said = told(seen(beside()))
    assert found is Reason.NODE_LOST
    assert said.startswith("The node node-7 does not report any more.")
    assert "kubectl logs" not in said


def test_a_sidecar_that_is_not_ready_is_named() -> None:
    found, said = told(seen(beside(reason="ContainersNotReady", others=[PROXY])))
    assert found is Reason.SIDECAR_NOT_READY
    assert "istio-proxy" in said
    assert "kubectl logs deploy/qwen -c" in said


def test_an_init_container_that_fails_is_named() -> None:
    pod = a_pod({"waiting": {"reason": "PodInitializing"}})
    pod["status"]["initContainerStatuses"] = [CRASHING]
    found, said = told(seen(pod))
    assert found is Reason.SIDECAR_NOT_READY
    assert "istio-init" in said
    assert "back-off 5m0s" in said


def test_a_readiness_gate_that_is_not_met_is_reported() -> None:
    pod = beside(reason="ReadinessGatesNotReady")
    pod["status"]["conditions"][0]["message"] = 'corresponding condition "x/y" is missing'
    found, said = told(seen(pod))
    assert found is Reason.SERVER_NOT_READY
    assert 'condition "x/y"' in said


def test_a_server_that_hangs_is_reported_although_a_sidecar_is_ready() -> None:
    ready = {**PROXY, "ready": True}
    assert told(seen(beside(ready=False, others=[ready])))[0] is Reason.SERVER_NOT_READY


# Pods that the API server refuses.


def refused(message: str, seconds: float = 90) -> Mapping[str, Any]:
    return {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": message,
        "lastTransitionTime": ago(seconds),
    }


def over_quota(requested: str, used: str, limited: str) -> str:
    return (
        f'pods "qwen-1" is forbidden: exceeded quota: team, requested: {requested}, '
        f"used: {used}, limited: {limited}"
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (over_quota("pods=1", "pods=1", "pods=1"), Reason.QUOTA_EXCEEDED),
        (
            'pods "qwen-1" is forbidden: failed quota: team: must specify limits.memory for: '
            "server",
            Reason.LIMITS_REQUIRED,
        ),
        (
            'pods "qwen-1" is forbidden: maximum memory usage per Container is 1Gi, but limit is '
            "2Gi",
            Reason.LIMIT_RANGE_EXCEEDED,
        ),
        (
            'pods "qwen-1" is forbidden: [minimum cpu usage per Pod is 2, but request is 1, x]',
            Reason.LIMIT_RANGE_EXCEEDED,
        ),
        (
            'pods "qwen-1" is forbidden: memory max limit to request ratio per Container is 2, but '
            "provided ratio is 4.000000",
            Reason.LIMIT_RANGE_EXCEEDED,
        ),
        (
            'admission webhook "x" denied the request: no label',
            Reason.POD_REFUSED,
        ),
    ],
)
def test_what_refuses_a_pod_has_a_reason_of_its_own(message: str, expected: Reason) -> None:
    found, said = told(seen(replicas=0, updated=0, conditions=(refused(message),)))
    assert found is expected
    assert message in said
    assert said.endswith(expected.advice("qwen"))


GPU = "requests.nvidia.com/gpu"
SLICE = "requests.nvidia.com/mig-1g.10gb"
FITS: dict[str, tuple[str, bool]] = {
    "the old pod has the one GPU": (over_quota(f"{GPU}=1", f"{GPU}=1", f"{GPU}=1"), True),
    "others have some": (over_quota(f"{GPU}=1", f"{GPU}=4", f"{GPU}=4"), True),
    "the new pod needs more than the quota": (
        over_quota(f"{GPU}=2", f"{GPU}=1", f"{GPU}=1"),
        False,
    ),
    "the old pod gives too little": (over_quota(f"{GPU}=2", f"{GPU}=4", f"{GPU}=4"), False),
    "the quota became smaller": (over_quota(f"{GPU}=1", f"{GPU}=4", f"{GPU}=2"), False),
    "slices that the old pod has not": (
        over_quota(f"{SLICE}=1", f"{SLICE}=1", f"{SLICE}=1"),
        False,
    ),
    "memory": (
        over_quota("requests.memory=8Gi", "requests.memory=10Gi", "requests.memory=12Gi"),
        True,
    ),
    "memory and GPUs": (
        over_quota(f"memory=8Gi,{GPU}=1", f"memory=8Gi,{GPU}=1", f"memory=8Gi,{GPU}=1"),
        True,
    ),
    "pods": (over_quota("pods=1", "pods=3", "pods=3"), True),
    "a message that is not understood": ("exceeded quota: something", False),
}


@pytest.mark.parametrize(("message", "gives_way"), FITS.values(), ids=FITS.keys())
def test_an_old_pod_gives_way_to_one_that_a_quota_then_takes_and_to_no_other(
    message: str, gives_way: bool
) -> None:
    found = seen(
        an_old_pod(memory="8Gi"), replicas=1, updated=0, ready=1, conditions=(refused(message),)
    )
    decision = decide_rollout(a_service(), found, NOW)
    assert (decision.status is not None) is gives_way
    ready = build_status(a_service(), PIN, found, NOW).status["conditions"][0]
    assert ready["reason"] == ("RolloutInPlace" if gives_way else "QuotaExceeded")


def test_an_old_pod_frees_what_its_init_containers_and_sidecars_take_of_a_quota() -> None:
    pod = an_old_pod(memory="4Gi")
    pod["spec"]["overhead"] = {"memory": "1Gi"}
    pod["spec"]["initContainers"] = [
        {"name": "download", "resources": {"requests": {"memory": "9Gi"}}},
        {"name": "proxy", "restartPolicy": "Always", "resources": {"requests": {"memory": "2Gi"}}},
        {"name": "check", "resources": {"requests": {"memory": "6Gi"}}},
    ]
    pod = Compactor().compact({"apiVersion": "v1", "kind": "Pod", **pod})
    # The init container `download` takes the most: 9 Gi, and 1 Gi of overhead.
    for refused_memory, fits in (("10Gi", True), ("11Gi", False)):
        message = over_quota(f"memory={refused_memory}", "memory=10Gi", "memory=10Gi")
        assert fits_after_one_ends(message, [pod]) is fits
    del pod["spec"]["initContainers"][0]
    # Without `download`, the other init container and the sidecar take the most: 8 Gi together.
    for refused_memory, fits in (("9Gi", True), ("10Gi", False)):
        message = over_quota(f"memory={refused_memory}", "memory=9Gi", "memory=9Gi")
        assert fits_after_one_ends(message, [pod]) is fits


def test_a_quota_that_refuses_is_given_as_long_as_a_gpu_that_is_missing() -> None:
    message = over_quota(f"{GPU}=1", f"{GPU}=1", f"{GPU}=1")
    conditions = (refused(message, seconds=20),)
    found = seen(an_old_pod(), replicas=1, updated=0, ready=1, conditions=conditions)
    decision = decide_rollout(a_service(), found, NOW)
    assert (decision.status, decision.requeue_after_seconds) == (None, 40)


def test_an_old_pod_gives_way_to_one_that_waits_for_its_volume() -> None:
    new = an_unstarted_pod(200)
    found = seen(an_old_pod(), new, events=(MULTI_ATTACH,), replicas=2, updated=1, ready=1)
    decision = decide_rollout(a_service(), found, NOW)
    assert decision.status == RolloutStatus(in_place_since=timestamp(NOW))


IN_USE = (
    "0/3 nodes are available: 3 node(s) unavailable due to PersistentVolumeClaim with "
    "ReadWriteOncePod access mode already in-use by another pod."
)


def test_an_old_pod_gives_way_to_one_that_waits_for_a_claim_of_one_pod() -> None:
    new = a_pod(unscheduled=IN_USE, claims=("models",))
    new["status"]["conditions"][1]["lastTransitionTime"] = ago(90)
    found = seen(an_old_pod(), new, replicas=2, updated=1, ready=1)
    assert told(found)[0] is Reason.VOLUME_IN_USE
    assert decide_rollout(a_service(), found, NOW).status is not None


def test_a_volume_that_cannot_be_bound_is_a_problem_of_the_claim() -> None:
    message = 'running PreBind plugin "VolumeBinding": binding volumes: context deadline exceeded'
    found, said = told(seen(a_pod(unscheduled=message, claims=("models",))))
    assert found is Reason.VOLUME_PENDING
    assert "models" in said


def test_a_pod_that_scheduling_gates_hold_back_is_not_blamed_on_the_nodes() -> None:
    pod = a_pod(unscheduled="Scheduling is blocked due to non-empty scheduling gates")
    pod["status"]["conditions"][1]["reason"] = "SchedulingGated"
    found, said = told(seen(pod))
    assert found is Reason.UNSCHEDULABLE
    assert said.startswith("Scheduling gates hold the pod back: ")


def test_a_pod_that_no_scheduler_looks_at_is_reported() -> None:
    pod = a_pod(created=ago(60))
    pod["status"]["conditions"] = []
    assert seen(pod).problem is None
    assert seen(pod).look_again_seconds == 60
    pod["metadata"]["creationTimestamp"] = ago(200)
    assert seen(pod).problem is None
    assert seen(pod).look_again_seconds == 60
    pod["metadata"]["creationTimestamp"] = ago(400)
    found, said = told(seen(pod))
    assert found is Reason.UNSCHEDULABLE
    assert "spec.template.schedulerName" in said


def test_an_old_pod_that_does_not_end_and_holds_up_new_ones_is_reported() -> None:
    old = an_old_pod()
    old["spec"]["nodeName"] = "node-7"
    old["metadata"]["deletionTimestamp"] = ago(60)
    found = seen(old, replicas=0, updated=0)
    assert (found.problem, found.look_again_seconds) == (None, 60)
    old["metadata"]["deletionTimestamp"] = ago(600)
    reason, said = told(seen(old, replicas=0, updated=0))
    assert reason is Reason.NODE_LOST
    assert "node-7 does not end the pod qwen-old-1" in said
    # There is no problem if no new pod waits for the old pod.
    assert seen(old, a_pod(RUNNING, ready=True), ready=1).problem is None
    assert seen(old, replicas=0, updated=0, desired=0).problem is None


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        ("exceeded quota: team, requested: count/replicasets.apps=1", Reason.QUOTA_EXCEEDED),
        ('admission webhook "x" denied the request: no label', Reason.POD_REFUSED),
    ],
)
@pytest.mark.parametrize("observed", [1, 2], ids=["before", "after"])
def test_a_replica_set_that_the_api_server_refuses_is_reported_although_the_spec_is_not_observed(
    why: str, expected: Reason, observed: int
) -> None:
    refused_set = {
        "type": "Progressing",
        "status": "False",
        "reason": "ReplicaSetCreateError",
        "message": f'Failed to create new replica set "qwen-new": {why}',
    }
    found = seen(
        an_old_pod(),
        replicas=1,
        updated=0,
        ready=1,
        conditions=(refused_set,),
        observed_generation=observed,
    )
    reason, said = told(found)
    assert reason is expected
    assert f"refuses the ReplicaSet: {refused_set['message']}" in said
    assert not found.is_rolled_out


def test_a_long_name_that_another_client_wrote_is_no_revision_too_long_for_the_status() -> None:
    named = {
        "type": "Progressing",
        "status": "True",
        "reason": "NewReplicaSetAvailable",
        "message": f'ReplicaSet "{"x" * 5000}" has successfully progressed.',
    }
    found = seen(a_pod(RUNNING, ready=True), ready=1, conditions=(named,))
    status = build_status(a_service(), PIN, found, NOW).status
    assert len(status["completeRevision"]) == 63


def test_a_paused_deployment_is_reported() -> None:
    deployment = a_deployment(replicas=1, updated=0, ready=1)
    deployment["spec"]["paused"] = True
    found = observe_service(a_service(), deployment, [an_old_pod()], None, NOW)
    reason, said = told(found)
    assert reason is Reason.DEPLOYMENT_PAUSED
    assert "kubectl rollout resume deploy/qwen" in said

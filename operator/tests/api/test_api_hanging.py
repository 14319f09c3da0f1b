"""Tests rollouts that would never end, and pods that do not start, without a kubelet."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llmservice_operator.api.fields import timestamp
from llmservice_operator.api.reasons import Reason
from llmservice_operator.kinds import DEPLOYMENTS, EVENTS, LLMSERVICES, PODS
from operator_support.forked import ForkedOperator
from operator_support.processes import (
    Api,
    OperatorProcess,
    condition,
    make_pods_ready,
    make_service,
    until_pods,
)
from shared_support.waiting import eventually

RESTART = {"spec": {"engine": {"maxModelLen": 512}}}
SURGE = {"maxSurge": 1, "maxUnavailable": 0}
IN_PLACE = {"maxSurge": 0, "maxUnavailable": 1}
GPU = "requests.nvidia.com/gpu"


@pytest.fixture
def operator(api: Api, namespace: str, log: Any) -> Any:
    with ForkedOperator(log, namespace, WATCH_NAMESPACES=namespace) as process:
        yield process.until_leading()


def until_reason(api: Api, namespace: str, reason: Reason, within: float = 20) -> str:
    """Wait until Ready of the service llm has the reason; return its message."""

    def has_it() -> str:
        ready = condition(api.get(LLMSERVICES, namespace, "llm"), "Ready")
        assert ready["reason"] == reason, ready
        return str(ready["message"])

    said = eventually(has_it, within)
    assert reason.is_normal or said.endswith(reason.advice("llm"))
    return said


def pods(api: Api, namespace: str) -> list[dict[str, Any]]:
    found = api.list_all(PODS, namespace, labelSelector="llmservice.dev/name=llm")
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def names_of(found: list[dict[str, Any]]) -> set[str]:
    return {pod["metadata"]["name"] for pod in found}


def strategy(api: Api, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(DEPLOYMENTS, namespace, "llm")["spec"]["strategy"]
    return found["rollingUpdate"]  # type: ignore[no-any-return]


def serve(api: Api, namespace: str, **spec: Any) -> set[str]:
    """Bring a service up to one ready replica; return the names of its pods."""
    api.create(LLMSERVICES, make_service("llm", namespace, **spec))
    until_pods(api, namespace, "llm", 1)
    until_serving(api, namespace)
    return names_of(pods(api, namespace))


def until_serving(api: Api, namespace: str) -> None:
    def serves() -> bool:
        make_pods_ready(api, namespace, "llm")
        service = api.get(LLMSERVICES, namespace, "llm")
        ready = condition(service, "Ready")
        assert ready["observedGeneration"] == service["metadata"]["generation"]
        return bool(ready["status"] == "True")

    eventually(serves)


def forbid(api: Api, namespace: str, **hard: str) -> None:
    quota = {"metadata": {"name": "team"}, "spec": {"hard": hard}}
    path = f"/api/v1/namespaces/{namespace}/resourcequotas"
    api.request("POST", path, quota)
    eventually(lambda: api.request("GET", f"{path}/team").get("status", {}).get("hard") == hard)


def ago(seconds: float) -> str:
    now = datetime.now(UTC)  # noqa: TID251 - the operator compares it with its own clock
    return timestamp(now - timedelta(seconds=seconds))


def set_status(api: Api, namespace: str, pod: str, **status: Any) -> None:
    api.patch(PODS, namespace, pod, {"status": status}, "status")


def bind(api: Api, namespace: str, pod: str, seconds: float) -> None:
    """Report the pod as scheduled `seconds` ago, with a container that is still being created."""
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(seconds)}
    waiting = {"waiting": {"reason": "ContainerCreating"}}
    server = {"name": "server", "ready": False, "restartCount": 0, "image": "i", "imageID": ""}
    set_status(
        api,
        namespace,
        pod,
        phase="Pending",
        startTime=ago(seconds),
        conditions=[scheduled],
        containerStatuses=[{**server, "state": waiting}],
    )


def warn(api: Api, namespace: str, pod: str, reason: str, message: str) -> None:
    """Record a Warning Event about a pod, as the controllers and the kubelet do."""
    live = api.get(PODS, namespace, pod)
    event = {
        "metadata": {"generateName": f"{pod}.", "namespace": namespace},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": namespace,
            "name": pod,
            "uid": live["metadata"]["uid"],
        },
        "type": "Warning",
        "reason": reason,
        "message": message,
        "firstTimestamp": ago(1),
        "lastTimestamp": ago(1),
        "source": {"component": "kubelet"},
    }
    api.request("POST", EVENTS.path(namespace), event)


def test_a_rollout_that_an_accelerator_quota_refuses_continues_in_place_and_completes(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    forbid(api, namespace, **{GPU: "1"})
    old = serve(api, namespace, accelerator={"count": 1})
    assert strategy(api, namespace) == SURGE
    api.patch(LLMSERVICES, namespace, "llm", RESTART)
    until_reason(api, namespace, Reason.QUOTA_EXCEEDED)
    # The operator must act at the end of the minute, although no watch event reports it.
    eventually(lambda: strategy(api, namespace) == IN_PLACE)

    def replaced() -> bool:
        make_pods_ready(api, namespace, "llm")
        return not names_of(pods(api, namespace)) & old

    eventually(replaced)
    until_serving(api, namespace)
    eventually(lambda: strategy(api, namespace) == SURGE)


def test_a_rollout_that_would_exceed_the_quota_in_place_too_leaves_the_old_replica(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    forbid(api, namespace, **{"requests.memory": "2Gi"})
    old = serve(api, namespace, resources={"requests": {"memory": "1Gi"}})
    larger = {"spec": {"resources": {"requests": {"memory": "4Gi"}}}}
    api.patch(LLMSERVICES, namespace, "llm", larger)
    until_reason(api, namespace, Reason.QUOTA_EXCEEDED)
    deployment = api.get(DEPLOYMENTS, namespace, "llm")
    failure = {**condition(deployment, "ReplicaFailure"), "lastTransitionTime": ago(600)}
    others = [it for it in deployment["status"]["conditions"] if it["type"] != "ReplicaFailure"]
    status = {"status": {"conditions": [*others, failure]}}
    api.patch(DEPLOYMENTS, namespace, "llm", status, "status")
    until_reason(api, namespace, Reason.QUOTA_EXCEEDED)
    assert strategy(api, namespace) == SURGE
    assert names_of(pods(api, namespace)) == old


@pytest.mark.causes("VolumeInUse")
def test_a_rollout_whose_volume_is_on_another_node_is_reported_and_continues_in_place(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    claimed = {"type": "PersistentVolumeClaim", "claimName": "models"}
    old = serve(api, namespace, model={"uri": "hf://org/model", "cache": claimed})
    api.patch(LLMSERVICES, namespace, "llm", RESTART)
    (new,) = eventually(lambda: names_of(pods(api, namespace)) - old)
    said = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) llm-old'
    warn(api, namespace, new, "FailedAttachVolume", said)
    bind(api, namespace, new, 300)
    eventually(lambda: strategy(api, namespace) == IN_PLACE)
    told = {each.value for each in (Reason.VOLUME_IN_USE, Reason.ROLLOUT_IN_PLACE)}
    events = [it for it in api.list_all(EVENTS, namespace) if it["reason"] in told]
    assert events


def test_a_rollout_with_a_claim_that_only_one_node_can_mount_is_in_place(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    made = {"type": "PersistentVolumeClaim", "size": "1Gi", "accessModes": ["ReadWriteOnce"]}
    serve(api, namespace, model={"uri": "hf://org/model", "cache": made})
    assert strategy(api, namespace) == IN_PLACE


def fail(reason: str, message: str) -> Callable[[Api, str, str], None]:
    def apply(api: Api, namespace: str, pod: str) -> None:
        set_status(api, namespace, pod, phase="Failed", reason=reason, message=message)

    return apply


def hang(reason: str, message: str) -> Callable[[Api, str, str], None]:
    def apply(api: Api, namespace: str, pod: str) -> None:
        warn(api, namespace, pod, reason, message)
        bind(api, namespace, pod, 300)

    return apply


def lose_node(api: Api, namespace: str, pod: str) -> None:
    state = {"running": {"startedAt": ago(60)}}
    server = {"name": "server", "restartCount": 0, "image": "i", "imageID": ""}
    unready = {"type": "Ready", "status": "False", "lastTransitionTime": ago(5)}
    run = {**server, "state": state, "ready": True, "started": True}
    conditions = [unready, {"type": "PodScheduled", "status": "True"}]
    set_status(api, namespace, pod, phase="Running", conditions=conditions, containerStatuses=[run])


def break_sidecar(api: Api, namespace: str, pod: str) -> None:
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}}
    init = {"name": "istio-init", "restartCount": 4, "image": "i", "imageID": "", "ready": False}
    starting = {"waiting": {"reason": "PodInitializing"}}
    server = {"name": "server", "restartCount": 0, "image": "i", "imageID": "", "ready": False}
    set_status(
        api,
        namespace,
        pod,
        phase="Pending",
        startTime=ago(300),
        conditions=[{"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(300)}],
        initContainerStatuses=[{**init, "state": waiting}],
        containerStatuses=[{**server, "state": starting}],
    )


@pytest.mark.causes(
    "EphemeralStorageExceeded",
    "Evicted",
    "DeviceUnavailable",
    "PodRejected",
    "PodNotStarting",
    "NodeLost",
    "SidecarNotReady",
)
@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (
            fail("Evicted", 'Usage of EmptyDir volume "cache" exceeds the limit "20Gi".'),
            Reason.EPHEMERAL_STORAGE_EXCEEDED,
        ),
        (fail("Evicted", "The node was low on resource: memory."), Reason.EVICTED),
        (
            fail(
                "UnexpectedAdmissionError",
                "Allocate failed due to no healthy devices present; cannot allocate unhealthy "
                "devices nvidia.com/gpu, which is unexpected",
            ),
            Reason.DEVICE_UNAVAILABLE,
        ),
        (
            fail("TopologyAffinityError", "Resources cannot be allocated with Topology locality"),
            Reason.POD_REJECTED,
        ),
        (
            hang("FailedCreatePodSandBox", "Failed to create pod sandbox: no IP address is left"),
            Reason.POD_NOT_STARTING,
        ),
        (lose_node, Reason.NODE_LOST),
        (break_sidecar, Reason.SIDECAR_NOT_READY),
    ],
    ids=lambda each: each.value if isinstance(each, Reason) else "",
)
def test_a_pod_that_does_not_serve_has_a_reason_with_a_remedy(
    api: Api,
    namespace: str,
    operator: OperatorProcess,
    happens: Callable[[Api, str, str], None],
    reason: Reason,
) -> None:
    api.create(LLMSERVICES, make_service("llm", namespace))
    until_pods(api, namespace, "llm", 1)
    (pod,) = names_of(pods(api, namespace))
    happens(api, namespace, pod)
    until_reason(api, namespace, reason)


@pytest.mark.causes("DeploymentPaused")
def test_a_paused_deployment_is_reported(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    serve(api, namespace)
    api.patch(DEPLOYMENTS, namespace, "llm", {"spec": {"paused": True}})
    api.patch(LLMSERVICES, namespace, "llm", RESTART)
    said = until_reason(api, namespace, Reason.DEPLOYMENT_PAUSED)
    assert "kubectl rollout resume deploy/llm" in said
    api.patch(DEPLOYMENTS, namespace, "llm", {"spec": {"paused": None}})
    until_serving(api, namespace)


@pytest.mark.causes("LimitsRequired")
def test_a_quota_that_requires_limits_is_reported(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    forbid(api, namespace, **{"limits.memory": "8Gi"})
    api.create(LLMSERVICES, make_service("llm", namespace))
    assert "must specify limits.memory" in until_reason(api, namespace, Reason.LIMITS_REQUIRED)


def test_a_quota_that_refuses_the_replica_set_is_reported(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    forbid(api, namespace, **{"count/replicasets.apps": "0"})
    api.create(LLMSERVICES, make_service("llm", namespace))
    said = until_reason(api, namespace, Reason.QUOTA_EXCEEDED)
    assert "refuses the ReplicaSet" in said
    assert "count/replicasets.apps=1" in said


@pytest.mark.causes("StorageQuotaExceeded")
def test_a_quota_of_storage_names_the_size_of_the_cache(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    forbid(api, namespace, **{"requests.storage": "1Gi"})
    made = {"type": "PersistentVolumeClaim", "size": "9Gi"}
    service = make_service("llm", namespace, model={"uri": "hf://org/model", "cache": made})
    api.create(LLMSERVICES, service)
    said = until_reason(api, namespace, Reason.STORAGE_QUOTA_EXCEEDED)
    assert "spec.model.cache.size" in said


@pytest.mark.causes("PodRefused")
def test_a_refusal_of_pods_by_an_admission_policy_is_reported_with_its_message(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    api.request("PATCH", f"/api/v1/namespaces/{namespace}", level, "application/merge-patch+json")
    api.create(LLMSERVICES, make_service("llm", namespace))
    until_pods(api, namespace, "llm", 1)
    deny = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "metadata": {"name": f"no-pods.{namespace}"},
    }
    group = "/apis/admissionregistration.k8s.io/v1"
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
    policy = {
        **deny,
        "kind": "ValidatingAdmissionPolicy",
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "namespaceSelector": selector,
                "resourceRules": [{**rule, "operations": ["CREATE"]}],
            },
            "validations": [{"expression": "false", "message": "no pods on Fridays"}],
        },
    }
    binding = {
        **deny,
        "kind": "ValidatingAdmissionPolicyBinding",
        "spec": {"policyName": f"no-pods.{namespace}", "validationActions": ["Deny"]},
    }
    api.request("POST", f"{group}/validatingadmissionpolicies", policy)
    api.request("POST", f"{group}/validatingadmissionpolicybindings", binding)
    try:

        def refused() -> bool:
            for pod in names_of(pods(api, namespace)):
                api.delete(PODS, namespace, pod, gracePeriodSeconds="0")
            ready = condition(api.get(LLMSERVICES, namespace, "llm"), "Ready")
            return bool(ready["reason"] == "PodRefused")

        eventually(refused)
        assert "no pods on Fridays" in until_reason(api, namespace, Reason.POD_REFUSED)
    finally:
        api.request("DELETE", f"{group}/validatingadmissionpolicybindings/no-pods.{namespace}")
        api.request("DELETE", f"{group}/validatingadmissionpolicies/no-pods.{namespace}")

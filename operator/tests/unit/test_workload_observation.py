"""Tests the problem that the operator reports about replicas that are not ready."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import LoadReport, ReplicaLoad
from llmservice_operator.api.reason_facts import Source
from llmservice_operator.api.reasons import Reason
from llmservice_operator.status import build_status
from llmservice_operator.workload import EnginePin, Observation, Problem, observe_service
from operator_support.services import NOW, a_deployment, a_pod, a_report, a_service

RECORDED = Path(__file__).parent / "recorded"
NO_GPU = (
    "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available: "
    "1 No preemption victims found for incoming pod."
)
RUNNING: Mapping[str, Any] = {"running": {"startedAt": "2026-01-02T03:00:00Z"}}
LOG = "Traceback (most recent call last):\n  File x\nValueError: no"


def seen(*pods: Manifest, spec: Mapping[str, Any] | None = None, **deployment: Any) -> Observation:
    return observe_service(a_service(spec), a_deployment(**deployment), pods)


def problem(*pods: Manifest, spec: Mapping[str, Any] | None = None, **deployment: Any) -> Problem:
    found = seen(*pods, spec=spec, **deployment).problem
    assert found is not None
    return found


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def ended(message: str = "", **fields: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": 1, "reason": "Error", "message": message, **fields}}


def last_words(reason: str, message: str) -> str:
    return json.dumps({"format": 2, "reason": reason, "message": message})


PROBLEMS: dict[str, tuple[Manifest, Reason, str]] = {
    "no GPU on any node": (
        a_pod(unscheduled=NO_GPU),
        Reason.WAITING_FOR_GPU,
        f"A replica needs 1 nvidia.com/gpu on one node, and no node has them free: {NO_GPU}",
    ),
    "no memory on any node": (
        a_pod(unscheduled="0/1 nodes are available: 1 Insufficient memory."),
        Reason.UNSCHEDULABLE,
        "No node can take a replica: 0/1 nodes are available: 1 Insufficient memory.",
    ),
    "an image that does not exist": (
        a_pod(waiting("ImagePullBackOff", 'Back-off pulling image "registry/gpu:1"')),
        Reason.IMAGE_PULL_ERROR,
        'The node cannot pull the image registry/gpu:1: Back-off pulling image "registry/gpu:1".',
    ),
    "a Secret that does not exist": (
        a_pod(waiting("CreateContainerConfigError", 'secret "hub-token" not found')),
        Reason.SECRET_MISSING,
        'A Secret that the spec names cannot be read: secret "hub-token" not found.',
    ),
    "a key that the Secret lacks": (
        a_pod(
            waiting(
                "CreateContainerConfigError", "couldn't find key HF_TOKEN in Secret team/hub-token"
            )
        ),
        Reason.SECRET_MISSING,
        "A Secret that the spec names cannot be read: couldn't find key HF_TOKEN in Secret "
        "team/hub-token.",
    ),
    "a ConfigMap that does not exist": (
        a_pod(waiting("CreateContainerConfigError", 'configmap "templates" not found')),
        Reason.CONFIG_MAP_MISSING,
        'A ConfigMap that the spec names cannot be read: configmap "templates" not found.',
    ),
    "a key that the ConfigMap lacks": (
        a_pod(
            waiting("CreateContainerConfigError", "couldn't find key chat in ConfigMap team/texts")
        ),
        Reason.CONFIG_MAP_MISSING,
        "A ConfigMap that the spec names cannot be read: couldn't find key chat in ConfigMap "
        "team/texts.",
    ),
    "an image without our server": (
        a_pod(waiting("RunContainerError", 'exec: "llmservice-server": not found in $PATH')),
        Reason.CONTAINER_START_ERROR,
        'The node cannot start the container: exec: "llmservice-server": not found in $PATH.',
    ),
    "an image without our server, between two attempts": (
        a_pod(
            waiting("CrashLoopBackOff"),
            restartCount=2,
            lastState=ended(
                'exec: "llmservice-server": executable file not found in $PATH: unknown',
                reason="StartError",
                exitCode=128,
                startedAt="1970-01-01T00:00:00Z",
                finishedAt="2026-01-02T03:00:00Z",
            ),
        ),
        Reason.CONTAINER_START_ERROR,
        'The node cannot start the container: exec: "llmservice-server": executable file not '
        "found in $PATH: unknown.",
    ),
    "a model that loads": (
        a_pod(RUNNING, started=False),
        Reason.LOADING_MODEL,
        "The model server downloads or loads the model.",
    ),
    "a model that loads again after one crash": (
        a_pod(RUNNING, started=False, restartCount=1, lastState=ended("gone")),
        Reason.LOADING_MODEL,
        "The model server downloads or loads the model. The container was restarted 1 time(s).",
    ),
    "a container killed for its memory": (
        a_pod(waiting("CrashLoopBackOff"), lastState=ended(reason="OOMKilled", exitCode=137)),
        Reason.OUT_OF_MEMORY,
        "The container was killed at its memory limit.",
    ),
    "a crash that left the end of its log": (
        a_pod(waiting("CrashLoopBackOff"), restartCount=3, lastState=ended(LOG)),
        Reason.CRASH_LOOP,
        "The model server ended with exit code 1 and was restarted 3 time(s). Traceback "
        "(most recent call last): File x ValueError: no.",
    ),
    "a crash without a word": (
        a_pod(RUNNING, started=False, restartCount=2, lastState=ended()),
        Reason.CRASH_LOOP,
        "The model server ended with exit code 1 and was restarted 2 time(s). It left no message.",
    ),
    "a server that answers no more": (
        a_pod(RUNNING, started=True, changed="2026-01-02T03:00:01Z"),
        Reason.SERVER_NOT_READY,
        "The model server was ready and does not answer its readiness probe now: it hangs, "
        "or it is being replaced.",
    ),
    "a server that has loaded and was not asked yet whether it is ready": (
        a_pod(RUNNING, started=True, changed="2026-01-02T03:00:00Z"),
        Reason.LOADING_MODEL,
        "The model server downloads or loads the model.",
    ),
    "a model that took too long": (
        a_pod(
            RUNNING,
            started=False,
            restartCount=1,
            changed="2026-01-02T02:00:00Z",
            lastState=ended(
                startedAt="2026-01-02T02:00:01Z", finishedAt="2026-01-02T02:29:56Z", exitCode=137
            ),
        ),
        Reason.STARTUP_TIMEOUT,
        "The model was not loaded within 1800 seconds. The container was restarted 1 time(s).",
    ),
    "a crash after an hour of serving": (
        a_pod(
            waiting("CrashLoopBackOff"),
            restartCount=1,
            changed="2026-01-02T02:59:00Z",
            lastState=ended(startedAt="2026-01-02T02:00:00Z", finishedAt="2026-01-02T02:59:00Z"),
        ),
        Reason.CRASH_LOOP,
        "The model server ended with exit code 1 and was restarted 1 time(s). It left no message.",
    ),
}


@pytest.mark.parametrize(("pod", "reason", "found"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_a_pod_says_what_keeps_it_from_being_ready_and_then_what_to_do(
    pod: Manifest, reason: Reason, found: str
) -> None:
    assert problem(pod) == Problem(reason, f"{found} {reason.advice('qwen')}")


@pytest.mark.parametrize(
    "message",
    [
        '0/1 nodes are available: persistentvolumeclaim "models" not found.',
        "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
        "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind.",
    ],
    ids=["missing", "not bound", "no volume where the pod could run"],
)
def test_a_claim_that_cannot_be_used_is_named(message: str) -> None:
    assert problem(a_pod(unscheduled=message, claims=("models",))) == Problem(
        Reason.VOLUME_PENDING,
        f"The claim models cannot be used: {message} {Reason.VOLUME_PENDING.hint}",
    )


def told(phase: str, done: int | None = None, total: int | None = None) -> LoadReport:
    replica = ReplicaLoad(
        pod="qwen-new-1", is_ready=False, phase=phase, downloaded_bytes=done, total_bytes=total
    )
    return a_report(replica)


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (0, 140_000_000_000, "0.0 MB of 140.0 GB (0 %)"),
        (6_999_999_999, 140_000_000_000, "0.0 MB of 140.0 GB (0 %)"),
        (7_000_000_000, 140_000_000_000, "7.0 GB of 140.0 GB (5 %)"),
        (139_999_999_999, 140_000_000_000, "133.0 GB of 140.0 GB (95 %)"),
        (500_000, 1_000_000, "0.5 MB of 1.0 MB (50 %)"),
    ],
)
def test_a_download_is_reported_in_steps(done: int, total: int, text: str) -> None:
    pods, report = [a_pod(RUNNING, started=False)], told("downloading", done, total)
    assert observe_service(a_service(), a_deployment(), pods, report).problem == Problem(
        Reason.DOWNLOADING_MODEL,
        f"The model server downloads the model: {text}. {Reason.DOWNLOADING_MODEL.advice('qwen')}",
    )


@pytest.mark.parametrize(
    "report",
    [None, told("downloading"), told("loading", 5, 5), a_report()],
    ids=["no metrics server", "no numbers", "another phase", "no such pod"],
)
def test_without_numbers_a_download_is_reported_as_loading(report: LoadReport | None) -> None:
    pods = [a_pod(RUNNING, started=False)]
    found = observe_service(a_service(), a_deployment(), pods, report).problem
    assert found is not None
    assert found.reason is Reason.LOADING_MODEL


def test_slices_of_a_gpu_are_waited_for_by_their_own_name() -> None:
    spec = {"accelerator": {"count": 2, "resourceName": "nvidia.com/mig-1g.10gb"}}
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/mig-1g.10gb."
    found = problem(a_pod(unscheduled=message), spec=spec)
    assert found.reason is Reason.WAITING_FOR_GPU
    assert found.message.startswith(
        "A replica needs 2 nvidia.com/mig-1g.10gb on one node, and no node has them free: "
        f"{message}"
    )


def test_a_container_about_to_be_created_hinders_nothing() -> None:
    assert seen(a_pod(waiting("ContainerCreating"))).problem is None
    assert seen(a_pod()).problem is None


QUOTA = (
    'pods "qwen-1" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: '
    "requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4"
)


def failed_create(message: str) -> Mapping[str, Any]:
    return {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": message,
    }


def test_a_quota_that_refuses_pods_is_quoted() -> None:
    assert problem(replicas=0, updated=0, conditions=(failed_create(QUOTA),)) == Problem(
        Reason.QUOTA_EXCEEDED,
        f"A ResourceQuota of the namespace refuses the pod: {QUOTA}. {Reason.QUOTA_EXCEEDED.hint}",
    )


def test_a_policy_that_refuses_pods_is_quoted() -> None:
    refusal = 'violates PodSecurity "restricted:latest"'
    assert problem(replicas=0, updated=0, conditions=(failed_create(refusal),)) == Problem(
        Reason.POD_REFUSED,
        f"The API server refuses the pod: {refusal}. {Reason.POD_REFUSED.hint}",
    )


STUCK = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}


def test_a_rollout_past_its_deadline_is_stuck() -> None:
    observation, reason = seen(conditions=(STUCK,)), Reason.ROLLOUT_STUCK
    assert observation.is_stuck
    assert observation.problem == Problem(reason, f"{reason.meaning} {reason.advice('qwen')}")


def test_the_reason_of_a_pod_has_priority_over_a_deadline() -> None:
    assert problem(a_pod(unscheduled=NO_GPU), conditions=(STUCK,)).reason is Reason.WAITING_FOR_GPU


def test_a_crash_has_priority_over_a_wait_and_a_wait_over_loading() -> None:
    crash = PROBLEMS["a crash without a word"][0]
    wait = PROBLEMS["no GPU on any node"][0]
    loading = PROBLEMS["a model that loads"][0]
    assert problem(loading, wait, crash).reason is Reason.CRASH_LOOP
    assert problem(loading, wait).reason is Reason.WAITING_FOR_GPU


MODEL_SERVER_REASONS = [each for each in Reason if each.source is Source.MODEL_SERVER]


@pytest.mark.parametrize("reason", MODEL_SERVER_REASONS)
def test_the_message_of_a_container_that_ran_has_priority_over_everything_else(
    reason: Reason,
) -> None:
    said = a_pod(waiting("CrashLoopBackOff"), lastState=ended(last_words(reason, "no")))
    others = [pod for pod, other, _ in PROBLEMS.values() if other.source is not Source.MODEL_SERVER]
    assert problem(*others, said, conditions=(STUCK, failed_create(QUOTA))).reason is reason


def test_of_two_reasons_with_one_rank_the_alphabet_decides() -> None:
    pods = [
        a_pod(waiting("CrashLoopBackOff"), lastState=ended(last_words(reason, "no")))
        for reason in ("ModelNotFound", "HubUnreachable")
    ]
    assert problem(*pods).reason is Reason.HUB_UNREACHABLE


def test_pods_of_an_earlier_spec_are_ignored() -> None:
    old = a_pod(
        waiting("CrashLoopBackOff"),
        template="old",
        created="2026-01-01T00:00:00Z",
        lastState=ended(last_words("ModelNotFound", "no")),
    )
    new = a_pod(RUNNING, started=False)
    assert problem(old, new, replicas=2).reason is Reason.LOADING_MODEL
    assert seen(old, replicas=1, updated=0).problem is None


def test_terminating_pods_are_ignored() -> None:
    leaving = a_pod(unscheduled=NO_GPU)
    leaving["metadata"]["deletionTimestamp"] = "2026-01-02T03:00:00Z"
    evicted = a_pod(unscheduled=NO_GPU)
    evicted["status"]["phase"] = "Failed"
    assert seen(leaving, evicted).problem is None


def test_a_deployment_that_its_controller_has_not_seen_says_only_what_still_runs() -> None:
    crash = PROBLEMS["a crash without a word"][0]
    observation = seen(crash, replicas=2, updated=2, ready=1, observed_generation=1)
    assert observation == Observation(desired=1, replicas=2, ready_replicas=1)


def test_without_a_deployment_nothing_is_there() -> None:
    assert observe_service(a_service(), None, ()) == Observation()


@pytest.mark.parametrize(
    ("counts", "rolled_out"),
    [
        ({"replicas": 2, "updated": 2, "ready": 2, "desired": 2}, True),
        ({"replicas": 3, "updated": 2, "ready": 2, "desired": 2}, False),
        ({"replicas": 2, "updated": 1, "ready": 2, "desired": 2}, False),
        ({"replicas": 2, "updated": 2, "ready": 1, "desired": 2}, False),
        ({"replicas": 2, "updated": 2, "ready": 2, "desired": 3}, False),
        ({"replicas": 0, "updated": 0, "ready": 0, "desired": 0}, True),
    ],
    ids=[
        "all replaced and ready",
        "an old pod is left",
        "one is still to replace",
        "one is not ready",
        "one is still to create",
        "none is desired",
    ],
)
def test_a_rollout_is_done_when_nothing_is_left_to_do(
    counts: dict[str, Any], rolled_out: bool
) -> None:
    assert seen(**counts).is_rolled_out is rolled_out


def test_the_model_is_loaded_once_a_pod_of_the_present_spec_is_ready() -> None:
    old = a_pod(RUNNING, ready=True, template="old", created="2026-01-01T00:00:00Z")
    loading, ready = a_pod(RUNNING, started=False), a_pod(RUNNING, ready=True, started=True)
    assert not seen(old, loading, replicas=2, ready=1).has_loaded_model
    assert seen(old, ready, replicas=2, ready=2).has_loaded_model
    assert seen(ready, ready=1).problem is None


@pytest.mark.causes(Reason.LOADING_MODEL)
def test_a_start_that_goes_well_is_a_wait_and_then_nothing() -> None:
    recorded = json.loads((RECORDED / "pod_that_starts_well.json").read_text())["statuses"]
    reasons: list[Reason | None] = []
    for status in recorded:
        found = seen({**a_pod(), "status": status}).problem
        reason = None if found is None else found.reason
        if not reasons or reasons[-1] is not reason:
            reasons.append(reason)
    assert reasons == [None, Reason.LOADING_MODEL, None]
    has_loaded = [each["containerStatuses"] and each["containerStatuses"][0] for each in recorded]
    assert any(each and each["started"] and not each["ready"] for each in has_loaded)


def test_a_long_foreign_message_is_cut_to_its_end() -> None:
    log = "start " + "x" * 5000 + " end"
    found = problem(a_pod(ended(log), restartCount=2))
    assert len(found.message) < 2500
    assert "... x" in found.message
    assert "x end." in found.message
    assert found.message.endswith(f" {Reason.CRASH_LOOP.advice('qwen')}")


def test_a_refusal_without_a_message_says_so() -> None:
    found = problem(a_pod(waiting("ErrImagePull")))
    assert "registry/gpu:1: no reason given." in found.message


def test_the_replica_that_waits_longest_says_since_when_one_is_not_ready() -> None:
    ready = a_pod(RUNNING, ready=True, changed="2026-01-02T02:00:00Z")
    starting = a_pod(RUNNING, changed="2026-01-02T03:01:00Z")
    pending = a_pod(unscheduled=NO_GPU, created="2026-01-02T03:02:00Z")
    del pending["status"]["conditions"][0]
    assert seen(ready).not_ready_since is None
    assert seen(ready, pending).not_ready_since == datetime(2026, 1, 2, 3, 2, tzinfo=UTC)
    assert seen(ready, pending, starting).not_ready_since == datetime(2026, 1, 2, 3, 1, tzinfo=UTC)


def progressing(message: str, reason: str = "ReplicaSetUpdated") -> Mapping[str, Any]:
    return {"type": "Progressing", "status": "True", "reason": reason, "message": message}


OLD_AGAIN = a_pod(RUNNING, ready=True, template="old", created="2026-01-02T03:03:00Z")
"""A pod of the earlier template that was recreated during the rollout, as after a drain."""


@pytest.mark.parametrize(
    "message",
    [
        'ReplicaSet "qwen-new" is progressing.',
        'Created new replica set "qwen-new"',
        'Found new replica set "qwen-new"',
        'ReplicaSet "qwen-new" has timed out progressing.',
        'ReplicaSet "qwen-new" has successfully progressed.',
    ],
)
def test_a_pod_of_an_earlier_template_that_is_created_anew_does_not_count_as_the_present_one(
    message: str,
) -> None:
    new = a_pod(unscheduled=NO_GPU)
    new["status"]["conditions"][-1]["lastTransitionTime"] = "2026-01-02T03:00:00Z"
    told = (progressing(message),)
    found = seen(new, OLD_AGAIN, replicas=2, updated=1, ready=1, conditions=told)
    assert not found.has_loaded_model
    assert found.problem is not None
    assert found.problem.reason is Reason.WAITING_FOR_GPU
    assert found.waits_for_accelerator_since is not None


@pytest.mark.parametrize("reason", ["DeploymentPaused", "DeploymentResumed"])
def test_nothing_is_said_about_the_present_template_while_its_controller_does_not_name_it(
    reason: str,
) -> None:
    told = (progressing("Deployment is paused", reason),)
    found = seen(OLD_AGAIN, replicas=2, updated=1, ready=1, conditions=told)
    assert not found.has_loaded_model
    assert found.not_ready_since is None


def test_an_image_that_never_ran_stays_untried_despite_an_earlier_pod() -> None:
    told = (progressing('ReplicaSet "qwen-new" is progressing.'),)
    deployment = a_deployment(replicas=2, updated=1, ready=1, conditions=told)
    pods = (a_pod(waiting("ImagePullBackOff")), OLD_AGAIN)
    pin = EnginePin("registry/gpu:2", "0.33.0", "nvidia", untried=True)
    status = build_status(a_service(), pin, observe_service(a_service(), deployment, pods), NOW)
    assert status.status["engine"]["untried"] is True
    (model,) = (it for it in status.status["conditions"] if it["type"] == "ModelReady")
    assert model["status"] == "Unknown"

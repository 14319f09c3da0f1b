from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from llmservice_operator.api.conditions import MESSAGE_LIMIT
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.refusals import failure_of
from llmservice_operator.status import (
    Event,
    Failure,
    StatusUpdate,
    build_status,
    build_status_of_failure,
)
from llmservice_operator.workload import EnginePin, Observation, Problem
from operator_support.services import NOW, a_body, a_service

PIN = EnginePin("registry/gpu:1", "0.32.0", "nvidia")
SERVING = Observation(
    replicas=1, updated_replicas=1, ready_replicas=1, is_rolled_out=True, has_loaded_model=True
)
CREATED = Observation(replicas=1, updated_replicas=1)
LOADING = Observation(
    replicas=1, updated_replicas=1, problem=Problem(Reason.LOADING_MODEL, "It loads.")
)
NO_GPU = Observation(
    replicas=1, updated_replicas=1, problem=Problem(Reason.WAITING_FOR_GPU, "No GPU.")
)
CRASHING = Observation(
    replicas=1, updated_replicas=1, problem=Problem(Reason.CRASH_LOOP, "It crashes.")
)
NOT_FOUND = Observation(
    replicas=1, updated_replicas=1, problem=Problem(Reason.MODEL_NOT_FOUND, "No such model.")
)
NO_KEYS = Observation(
    replicas=1, updated_replicas=1, problem=Problem(Reason.SECRET_MISSING, "No key.")
)
STUCK = Observation(
    replicas=2,
    updated_replicas=1,
    ready_replicas=1,
    is_stuck=True,
    problem=Problem(Reason.WAITING_FOR_GPU, "No GPU."),
)
REPLACING = Observation(replicas=2, updated_replicas=1, ready_replicas=1)
CONFLICT = Failure(Reason.NAME_CONFLICT, "The Deployment qwen belongs to somebody else.")


def conditions(update: StatusUpdate) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in update.status["conditions"]}


def message(update: StatusUpdate, kind: str) -> str:
    found: str = next(
        each["message"] for each in update.status["conditions"] if each["type"] == kind
    )
    return found


def after(update: StatusUpdate, spec: dict[str, Any] | None = None) -> LLMService:
    return a_service(spec, status=update.status)


TABLE: dict[str, tuple[Observation, Failure | None, dict[str, Any], list[tuple[str, str]]]] = {
    # Ready, Progressing, Available, ModelReady
    "nothing is there yet": (
        Observation(),
        None,
        {},
        [
            ("False", "RolloutInProgress"),
            ("True", "RolloutInProgress"),
            ("False", "NoReplicaReady"),
            ("Unknown", "RolloutInProgress"),
        ],
    ),
    "pods are being created": (
        CREATED,
        None,
        {},
        [
            ("False", "RolloutInProgress"),
            ("True", "RolloutInProgress"),
            ("False", "NoReplicaReady"),
            ("Unknown", "RolloutInProgress"),
        ],
    ),
    "no node has a GPU": (
        NO_GPU,
        None,
        {},
        [
            ("False", "WaitingForGPU"),
            ("True", "RolloutInProgress"),
            ("False", "NoReplicaReady"),
            ("Unknown", "WaitingForGPU"),
        ],
    ),
    "the model loads": (
        LOADING,
        None,
        {},
        [
            ("False", "LoadingModel"),
            ("True", "RolloutInProgress"),
            ("False", "NoReplicaReady"),
            ("False", "LoadingModel"),
        ],
    ),
    "the model does not exist": (
        NOT_FOUND,
        None,
        {},
        [
            ("False", "ModelNotFound"),
            ("True", "RolloutInProgress"),
            ("False", "NoReplicaReady"),
            ("False", "ModelNotFound"),
        ],
    ),
    "the server crashes": (
        CRASHING,
        None,
        {},
        [
            ("False", "CrashLoop"),
            ("True", "RolloutInProgress"),
            ("False", "NoReplicaReady"),
            ("False", "CrashLoop"),
        ],
    ),
    "all is well": (
        SERVING,
        None,
        {},
        [
            ("True", "Serving"),
            ("False", "RolloutComplete"),
            ("True", "Serving"),
            ("True", "ModelLoaded"),
        ],
    ),
    "a new spec replaces the old one, which serves on": (
        REPLACING,
        None,
        {},
        [
            ("False", "RolloutInProgress"),
            ("True", "RolloutInProgress"),
            ("True", "Serving"),
            ("Unknown", "RolloutInProgress"),
        ],
    ),
    "a rollout is stuck while the old spec serves": (
        STUCK,
        None,
        {},
        [
            ("False", "WaitingForGPU"),
            ("False", "RolloutStuck"),
            ("True", "Serving"),
            ("Unknown", "WaitingForGPU"),
        ],
    ),
    "the Deployment still has the replicas of before": (
        SERVING,
        None,
        {"replicas": 2},
        [
            ("False", "RolloutInProgress"),
            ("False", "RolloutComplete"),
            ("True", "Serving"),
            ("True", "ModelLoaded"),
        ],
    ),
    "no replicas are asked for": (
        Observation(is_rolled_out=True),
        None,
        {"replicas": 0},
        [
            ("False", "ScaledToZero"),
            ("False", "RolloutComplete"),
            ("False", "ScaledToZero"),
            ("Unknown", "ScaledToZero"),
        ],
    ),
    "it is suspended": (
        Observation(is_rolled_out=True),
        None,
        {"replicas": 3, "suspend": True},
        [
            ("False", "Suspended"),
            ("False", "RolloutComplete"),
            ("False", "Suspended"),
            ("Unknown", "Suspended"),
        ],
    ),
    "the Secret with the API keys is missing": (
        NO_KEYS,
        None,
        {},
        [
            ("False", "SecretMissing"),
            ("True", "RolloutInProgress"),
            ("False", "NoReplicaReady"),
            ("Unknown", "SecretMissing"),
        ],
    ),
    "a name is taken": (
        Observation(),
        CONFLICT,
        {},
        [
            ("False", "NameConflict"),
            ("False", "NameConflict"),
            ("False", "NoReplicaReady"),
            ("Unknown", "NameConflict"),
        ],
    ),
    "a change is refused while pods serve": (
        SERVING,
        Failure(Reason.IMMUTABLE_FIELD, "no"),
        {},
        [
            ("False", "ImmutableField"),
            ("False", "ImmutableField"),
            ("True", "Serving"),
            ("True", "ModelLoaded"),
        ],
    ),
}


@pytest.mark.parametrize(("seen", "failure", "spec", "expected"), TABLE.values(), ids=TABLE.keys())
def test_conditions_say_what_was_seen(
    seen: Observation,
    failure: Failure | None,
    spec: dict[str, Any],
    expected: list[tuple[str, str]],
) -> None:
    update = build_status(a_service(spec), PIN, seen, NOW, failure)
    kinds = ("Ready", "Progressing", "Available", "ModelReady")
    assert conditions(update) == dict(zip(kinds, expected, strict=True))


def test_the_status_of_a_served_model_is_complete() -> None:
    update = build_status(a_service(), PIN, SERVING, NOW)
    ready = "1 of 1 replicas answer"
    stamp = {"observedGeneration": 3, "lastTransitionTime": "2026-01-02T03:04:05Z"}
    assert update.status == {
        "observedGeneration": 3,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                **stamp,
                "reason": "Serving",
                "message": f"{ready} at http://qwen.team.svc.",
            },
            {
                "type": "Progressing",
                "status": "False",
                **stamp,
                "reason": "RolloutComplete",
                "message": "All pods run the current spec.",
            },
            {
                "type": "Available",
                "status": "True",
                **stamp,
                "reason": "Serving",
                "message": f"{ready}.",
            },
            {
                "type": "ModelReady",
                "status": "True",
                **stamp,
                "reason": "ModelLoaded",
                "message": "A replica holds hf://org/model in memory.",
            },
        ],
        "replicas": 1,
        "readyReplicas": 1,
        "updatedReplicas": 1,
        "ready": "1/1",
        "gpus": 1,
        "selector": "llmservice.dev/name=qwen",
        "url": "http://qwen.team.svc",
        "engine": {"image": "registry/gpu:1", "version": "0.32.0", "defaultFor": "nvidia"},
    }


def test_a_second_pass_over_the_same_cluster_changes_nothing() -> None:
    first = build_status(a_service(), PIN, SERVING, NOW)
    second = build_status(after(first), PIN, SERVING, NOW + timedelta(hours=1))
    assert second == StatusUpdate(status=first.status, events=())


def test_the_transition_time_moves_only_with_the_status() -> None:
    loading = build_status(a_service(), PIN, LOADING, NOW)
    later = NOW + timedelta(minutes=5)
    crashing = build_status(after(loading), PIN, CRASHING, later)
    serving = build_status(after(crashing), PIN, SERVING, later)
    times = {each["type"]: each["lastTransitionTime"] for each in crashing.status["conditions"]}
    assert times["Ready"] == "2026-01-02T03:04:05Z"
    assert serving.status["conditions"][0]["lastTransitionTime"] == "2026-01-02T03:09:05Z"


@pytest.mark.parametrize(
    ("seen", "event"),
    [
        (SERVING, Event("Normal", "Serving", "1 of 1 replicas answer at http://qwen.team.svc.")),
        (LOADING, Event("Normal", "LoadingModel", "It loads.")),
        (NO_GPU, Event("Warning", "WaitingForGPU", "No GPU.")),
        (CRASHING, Event("Warning", "CrashLoop", "It crashes.")),
    ],
)
def test_an_event_reports_a_transition_once(seen: Observation, event: Event) -> None:
    update = build_status(a_service(), PIN, seen, NOW)
    assert update.events == (event,)
    assert build_status(after(update), PIN, seen, NOW).events == ()


def test_a_message_that_changes_is_reported_without_an_event() -> None:
    first = build_status(a_service(), PIN, NO_GPU, NOW)
    moved = Observation(
        replicas=1, updated_replicas=1, problem=Problem(Reason.WAITING_FOR_GPU, "0/9 nodes.")
    )
    second = build_status(after(first), PIN, moved, NOW)
    assert message(second, "Ready") == "0/9 nodes."
    assert second.events == ()


def test_an_image_of_the_spec_is_pinned_as_such() -> None:
    update = build_status(a_service(), EnginePin("mine:1", "0.32.0"), SERVING, NOW)
    assert update.status["engine"] == {"image": "mine:1", "version": "0.32.0"}


def test_a_default_image_is_untried_until_a_replica_with_it_was_ready() -> None:
    new = replace(PIN, untried=True)
    told = [
        build_status(a_service(), pin, seen, NOW).status["engine"].get("untried")
        for pin, seen in ((new, NO_GPU), (new, SERVING), (PIN, NO_GPU))
    ]
    assert told == [True, None, None]


def test_a_pass_that_failed_before_the_pin_keeps_the_previous_one() -> None:
    first = build_status(a_service(), PIN, SERVING, NOW)
    second = build_status(after(first), None, SERVING, NOW, CONFLICT)
    assert second.status["engine"] == first.status["engine"]
    assert "engine" not in build_status(a_service(), None, SERVING, NOW, CONFLICT).status


def test_an_address_that_may_belong_to_another_object_is_not_reported() -> None:
    assert "url" not in build_status(a_service(), PIN, Observation(), NOW, CONFLICT).status


def test_gpus_are_those_of_all_replicas() -> None:
    service = a_service({"replicas": 3, "accelerator": {"count": 4}})
    update = build_status(service, PIN, Observation(), NOW)
    assert (update.status["gpus"], update.status["ready"]) == (12, "0/3")
    on_cpu = build_status(a_service({"accelerator": {"type": "cpu"}}), PIN, SERVING, NOW)
    assert on_cpu.status["gpus"] == 0


@pytest.mark.parametrize(
    ("price", "cost"),
    [
        ("2.5", {"perGpuHour": "2.5", "perHour": "30"}),
        ("0.10", {"perGpuHour": "0.1", "perHour": "1.2"}),
        ("0", {"perGpuHour": "0", "perHour": "0"}),
        (None, None),
    ],
)
def test_the_cost_is_the_price_of_the_gpus_of_all_replicas(
    price: str | None, cost: dict[str, str] | None
) -> None:
    service = a_service({"replicas": 3, "accelerator": {"count": 4}})
    gpu_price = None if price is None else Decimal(price)
    update = build_status(service, PIN, Observation(), NOW, gpu_price=gpu_price)
    assert update.status.get("cost") == cost


def test_a_message_is_never_too_long_for_the_api_server() -> None:
    long = Observation(problem=Problem(Reason.CRASH_LOOP, "x" * 9000))
    update = build_status(a_service(), PIN, long, NOW)
    assert len(message(update, "Ready")) == MESSAGE_LIMIT


def test_a_service_that_cannot_be_read_says_so_and_keeps_what_runs() -> None:
    first = build_status(a_service(), PIN, SERVING, NOW)
    body = a_body({"replicas": -1}, status=first.status)
    body["metadata"]["generation"] = 4
    error = InvalidSpec("should be greater than or equal to 0, not -1", "spec.replicas")
    update = build_status_of_failure(body, failure_of(error), NOW)
    assert conditions(update) == {
        "Ready": ("False", "InvalidSpec"),
        "Progressing": ("False", "InvalidSpec"),
        "Available": ("True", "Serving"),
        "ModelReady": ("True", "ModelLoaded"),
    }
    said = "spec.replicas: should be greater than or equal to 0, not -1"
    assert message(update, "Ready") == said
    assert update.events == (Event("Warning", "InvalidSpec", said),)
    assert update.status["observedGeneration"] == 4
    assert update.status["engine"] == first.status["engine"]


@pytest.mark.parametrize("status", [{}, {"replicas": "many"}])
def test_a_service_that_could_never_be_read_says_so(status: dict[str, Any]) -> None:
    update = build_status_of_failure(
        a_body(status=status), failure_of(InvalidSpec("no", "spec")), NOW
    )
    assert conditions(update) == {
        "Ready": ("False", "InvalidSpec"),
        "Progressing": ("False", "InvalidSpec"),
    }


def test_the_metrics_server_keeps_the_ownership_of_the_calibration() -> None:
    calibration = {
        "stepSeconds": [1.0] * 4,
        "capacityFactor": 1.0,
        "promptLengths": [0.0] * 21,
        "answerLengths": [0.0] * 21,
        "meanPromptTokens": 1.0,
        "meanAnswerTokens": 1.0,
        "computedShare": 1.0,
        "kvTokensPerSequence": 1.0,
    }
    body = a_body({"autoscaling": {"maxReplicas": 2}})
    body["status"] = {"autoscaling": {"desiredReplicas": 2, "calibration": calibration}}
    service = LLMService.parse(body)
    assert service.status.autoscaling is not None
    assert service.status.autoscaling.calibration is not None

    readable = build_status(service, PIN, SERVING, NOW)
    unreadable = build_status_of_failure(body, failure_of(InvalidSpec("is wrong", "spec")), NOW)
    del body["status"]["autoscaling"]["desiredReplicas"]
    fixed = build_status_of_failure(body, failure_of(InvalidSpec("is wrong", "spec")), NOW)

    assert "calibration" not in readable.status["autoscaling"]
    assert unreadable.status["autoscaling"] == {"desiredReplicas": 2}
    assert "autoscaling" not in fixed.status


def test_zero_replicas_that_the_spec_does_not_set_are_not_blamed_on_the_spec() -> None:
    for spec, cause in (
        ({"replicas": 0}, "spec.replicas is 0. "),
        ({}, "The Deployment asks for 0 replicas. "),
        ({"autoscaling": {"maxReplicas": 2}}, "The Deployment asks for 0 replicas. "),
    ):
        update = build_status(a_service(spec), PIN, Observation(desired=0), NOW)
        for kind in ("Ready", "Available"):
            (said,) = (each for each in update.status["conditions"] if each["type"] == kind)
            assert said["reason"] == "ScaledToZero"
            assert said["message"].startswith(cause)

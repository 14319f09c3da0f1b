"""The conditions and reasons of an LLMService, declared once.

There is no phase. Every condition carries the generation it speaks about, and its transition time
moves only when its status does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field

from llmservice_operator.api.fields import Fields

MESSAGE_LIMIT = 4096
"""Characters; the API server would refuse a longer message and with it the whole status."""

ConditionStatus = Literal["True", "False", "Unknown"]


class ConditionType(StrEnum):
    """Set by status.build_status on every pass, never absent once the operator saw the service."""

    READY = "Ready"
    """The summary: True while every replica asked for serves the present spec.

    Its reason is what `kubectl get` shows, so it names the most useful thing to know.
    """
    PROGRESSING = "Progressing"
    """True while pods are being created or replaced; False when done or stuck."""
    AVAILABLE = "Available"
    """True while at least one model server answers, be it of this spec or of the one before."""
    MODEL_READY = "ModelReady"
    """True once a model server of the present spec holds the model in memory.

    Unknown until its container runs; False with what keeps the model from loading.
    """


class Reason(StrEnum):
    """Why a condition has its status."""

    SERVING = "Serving"
    """All replicas asked for are ready and run the present spec."""
    MODEL_LOADED = "ModelLoaded"
    """A model server of the present spec is ready."""
    ROLLOUT_COMPLETE = "RolloutComplete"
    """No pod is left to create or replace."""
    ROLLOUT_IN_PROGRESS = "RolloutInProgress"
    """Pods are being created or replaced and nothing hinders them."""
    SCALED_TO_ZERO = "ScaledToZero"
    """spec.replicas is 0."""
    NO_REPLICA_READY = "NoReplicaReady"
    """No model server answers; Ready says why."""
    LOADING_MODEL = "LoadingModel"
    """The container runs and downloads or loads the model."""

    WAITING_FOR_GPU = "WaitingForGPU"
    """The scheduler finds no node with enough free GPUs."""
    UNSCHEDULABLE = "Unschedulable"
    """The scheduler finds no node for another reason: CPU, memory, taints, node selector."""
    VOLUME_PENDING = "VolumePending"
    """The claim of a pvc:// model is missing or not bound."""
    QUOTA_EXCEEDED = "QuotaExceeded"
    """A ResourceQuota of the namespace refuses the pods."""
    POD_REFUSED = "PodRefused"
    """The API server refuses the pods for another reason, such as an admission policy."""
    IMAGE_PULL_ERROR = "ImagePullError"
    """The node cannot get the image."""
    SECRET_MISSING = "SecretMissing"
    """A Secret that the spec names, or its key, does not exist."""
    CONFIG_MAP_MISSING = "ConfigMapMissing"
    """A ConfigMap that the spec names, or its key, does not exist."""
    CONTAINER_START_ERROR = "ContainerStartError"
    """The node cannot create or start the container."""
    MODEL_NOT_FOUND = "ModelNotFound"
    """The hub has no such model or revision, or the claim no such folder."""
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    """The hub wants a token, or refuses the given one."""
    HUB_UNREACHABLE = "HubUnreachable"
    """The hub does not answer."""
    REMOTE_CODE_REFUSED = "RemoteCodeRefused"
    """The model brings Python code of its own, which is not run."""
    UNSUPPORTED_ARCHITECTURE = "UnsupportedArchitecture"
    """The engine's version does not know the model's architecture."""
    CONTEXT_DOES_NOT_FIT = "ContextDoesNotFit"
    """The KV cache cannot hold one request of engine.maxModelLen tokens."""
    INVALID_ENGINE_ARGUMENT = "InvalidEngineArgument"
    """The engine refuses one of its arguments."""
    GPU_OUT_OF_MEMORY = "GPUOutOfMemory"
    """The GPU's memory cannot hold the model."""
    OUT_OF_MEMORY = "OutOfMemory"
    """The container was killed at its memory limit."""
    CRASH_LOOP = "CrashLoop"
    """The container ends again and again; the message carries its last words."""
    SERVER_NOT_READY = "ServerNotReady"
    """The model server started and does not answer now."""
    ROLLOUT_STUCK = "RolloutStuck"
    """The rollout made no progress within its deadline and no pod says why."""

    NAME_CONFLICT = "NameConflict"
    """An object with a name that this service needs belongs to somebody else."""
    IMMUTABLE_FIELD = "ImmutableField"
    """The API server refuses a change of a field that cannot change."""
    INVALID_SPEC = "InvalidSpec"
    """The spec cannot be carried out as written."""


REASONS_OF_MODEL_SERVER = frozenset(
    {
        Reason.MODEL_NOT_FOUND,
        Reason.MODEL_ACCESS_DENIED,
        Reason.HUB_UNREACHABLE,
        Reason.REMOTE_CODE_REFUSED,
        Reason.UNSUPPORTED_ARCHITECTURE,
        Reason.CONTEXT_DOES_NOT_FIT,
        Reason.INVALID_ENGINE_ARGUMENT,
        Reason.GPU_OUT_OF_MEMORY,
        Reason.OUT_OF_MEMORY,
    }
)
"""Reasons that a model server may give in its termination message."""


class Condition(Fields):
    type: Annotated[str, Field(max_length=63)]
    """Which aspect this condition is about: Ready, Progressing, Available or ModelReady."""
    status: ConditionStatus
    """True, False or Unknown."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The metadata.generation that this condition speaks about."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When the status last changed."""
    reason: Annotated[str, Field(max_length=63)]
    """Why, as one CamelCase word."""
    message: Annotated[str, Field(max_length=MESSAGE_LIMIT)] = ""
    """Why, as a sentence that says what to change."""

    @classmethod
    def following(
        cls,
        previous: Condition | None,
        kind: ConditionType,
        status: ConditionStatus,
        reason: Reason,
        message: str,
        generation: int,
        now: datetime,
    ) -> Self:
        """Return the condition that comes after `previous`: same status, same transition time."""
        changed_at = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if previous is not None and previous.status == status:
            changed_at = previous.last_transition_time
        return cls(
            type=kind.value,
            status=status,
            observed_generation=generation,
            last_transition_time=changed_at,
            reason=reason.value,
            message=message[:MESSAGE_LIMIT],
        )

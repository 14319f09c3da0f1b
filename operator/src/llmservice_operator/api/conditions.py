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
    """The Secret of model.credentialsSecretRef, or its key, does not exist."""
    CONTAINER_START_ERROR = "ContainerStartError"
    """The node cannot create or start the container."""
    MODEL_NOT_FOUND = "ModelNotFound"
    """The hub has no such model or revision, or the claim no such folder; from the model server."""
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    """The hub wants a token, or refuses the given one; from the model server."""
    OUT_OF_MEMORY = "OutOfMemory"
    """The container was killed at its memory limit."""
    CRASH_LOOP = "CrashLoop"
    """The container ends again and again; the message carries its last words."""
    ROLLOUT_STUCK = "RolloutStuck"
    """The rollout made no progress within its deadline and no pod says why."""

    NAME_CONFLICT = "NameConflict"
    """An object with a name that this service needs belongs to somebody else."""
    IMMUTABLE_FIELD = "ImmutableField"
    """The API server refuses a change of a field that cannot change."""
    INVALID_SPEC = "InvalidSpec"
    """The spec cannot be carried out as written."""


REASONS_OF_MODEL_SERVER = frozenset({Reason.MODEL_NOT_FOUND, Reason.MODEL_ACCESS_DENIED})
"""Reasons that the model server may report in its termination message."""


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
    message: Annotated[str, Field(max_length=4096)] = ""
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
            message=message,
        )

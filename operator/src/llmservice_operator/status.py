"""spec + Observation -> status and the events of what changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import ValidationError

from llmservice_operator import names
from llmservice_operator.api.conditions import (
    REASONS_OF_MODEL_SERVER,
    Condition,
    ConditionStatus,
    ConditionType,
    Reason,
)
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.status import AutoscalingStatus, EngineStatus, LLMServiceStatus
from llmservice_operator.desired.pin import EnginePin
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.observe import Observation

_NOTHING_TO_DO: Final = frozenset(
    {
        Reason.SERVING,
        Reason.DOWNLOADING_MODEL,
        Reason.LOADING_MODEL,
        Reason.ROLLOUT_IN_PROGRESS,
        Reason.SCALED_TO_ZERO,
        Reason.SUSPENDED,
    }
)
"""Reasons of Ready that need nothing but patience; every other one is worth a Warning."""

_MODEL_REASONS: Final = REASONS_OF_MODEL_SERVER - {Reason.SECRET_MISSING} | {
    Reason.DOWNLOADING_MODEL,
    Reason.LOADING_MODEL,
    Reason.CRASH_LOOP,
}
"""Reasons of Ready that say that a container has tried to load the model and does not have it."""


@dataclass(frozen=True)
class Failure:
    """Why this pass could not make the cluster as the spec asks; what runs goes on running."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Event:
    """A core Event to record on the LLMService."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class StatusUpdate:
    status: dict[str, Any]
    """The whole status, to apply on the status subresource when it differs from the live one."""
    events: tuple[Event, ...]
    """Empty unless the Ready condition changed its status or reason."""


@dataclass(frozen=True)
class _Verdict:
    """A condition without what depends on its past."""

    type: ConditionType
    status: ConditionStatus
    reason: Reason
    message: str


def build_status(
    service: LLMService,
    pin: EnginePin | None,
    seen: Observation,
    now: datetime,
    failure: Failure | None = None,
) -> StatusUpdate:
    """Return the status that follows the service's present one.

    `pin` is None only when the pass failed before there was one; the pin of before is then kept.
    """
    desired = _desired(service, seen)
    verdicts = (
        _ready(service, seen, failure),
        _progressing(seen, desired, failure),
        _available(service, seen),
        _model_ready(service, seen, failure),
    )
    engine = service.status.engine
    if pin is not None:
        engine = EngineStatus(image=pin.image, version=pin.version, default_for=pin.default_for)
    is_reachable = failure is None or failure.reason is not Reason.NAME_CONFLICT
    status = LLMServiceStatus(
        observed_generation=service.generation,
        conditions=_conditions(service.status, verdicts, service.generation, now),
        replicas=seen.replicas,
        ready_replicas=seen.ready_replicas,
        updated_replicas=seen.updated_replicas,
        ready=f"{seen.ready_replicas}/{desired}",
        gpus=service.spec.gpus * desired,
        selector=",".join(f"{key}={value}" for key, value in names.selector(service).items()),
        url=names.url(service) if is_reachable else None,
        engine=engine,
        autoscaling=_autoscaling(service, desired),
    )
    return _update(service.status, status)


def build_status_of_unreadable(
    body: Mapping[str, Any], error: InvalidSpec, now: datetime
) -> StatusUpdate:
    """Return the status of an LLMService that LLMService.parse refused.

    What the last readable pass reported about pods and engine stays: they go on running.
    """
    try:
        previous = LLMServiceStatus.model_validate(body.get("status", {}))
    except ValidationError:
        previous = LLMServiceStatus()
    generation = body["metadata"].get("generation", 0)
    verdicts = tuple(
        _Verdict(kind, "False", Reason.INVALID_SPEC, str(error))
        for kind in (ConditionType.READY, ConditionType.PROGRESSING)
    )
    status = previous.model_copy(
        update={
            "observed_generation": generation,
            "conditions": _conditions(previous, verdicts, generation, now),
        }
    )
    return _update(previous, status)


def _autoscaling(service: LLMService, desired: int) -> AutoscalingStatus | None:
    if service.spec.autoscaling is None:
        return None
    # A suspended service begins again with as many replicas as it had.
    before = service.status.autoscaling
    is_kept = service.spec.suspend and before is not None
    return before if is_kept else AutoscalingStatus(desired_replicas=desired)


def _desired(service: LLMService, seen: Observation) -> int:
    """Return how many replicas are asked for: by the spec, or by the autoscaler it leaves it to."""
    spec = service.spec
    if spec.replicas is not None or spec.suspend or seen.asked is None:
        return spec.desired_replicas
    return seen.asked


def _conditions(
    previous: LLMServiceStatus, verdicts: tuple[_Verdict, ...], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Return the conditions after `previous`; one that nothing is said about stays as it is."""
    said = {
        verdict.type: Condition.following(
            previous.condition(verdict.type),
            verdict.type,
            verdict.status,
            verdict.reason,
            verdict.message,
            generation,
            now,
        )
        for verdict in verdicts
    }
    both = ((said.get(kind) or previous.condition(kind)) for kind in ConditionType)
    return tuple(condition for condition in both if condition is not None)


def _ready(service: LLMService, seen: Observation, failure: Failure | None) -> _Verdict:
    kind = ConditionType.READY
    if failure is not None:
        return _Verdict(kind, "False", failure.reason, failure.message)
    desired = _desired(service, seen)
    if desired == 0:
        reason, why = _zero(service)
        return _Verdict(kind, "False", reason, why)
    if seen.is_rolled_out and seen.ready_replicas == desired:
        message = f"{_replicas(seen, desired)} at {names.url(service)}."
        return _Verdict(kind, "True", Reason.SERVING, message)
    if seen.problem is not None:
        return _Verdict(kind, "False", seen.problem.reason, seen.problem.message)
    message = f"{_replicas(seen, desired)}; pods are being created or replaced."
    return _Verdict(kind, "False", Reason.ROLLOUT_IN_PROGRESS, message)


def _progressing(seen: Observation, desired: int, failure: Failure | None) -> _Verdict:
    kind = ConditionType.PROGRESSING
    if failure is not None:
        return _Verdict(kind, "False", failure.reason, failure.message)
    if seen.is_rolled_out:
        return _Verdict(kind, "False", Reason.ROLLOUT_COMPLETE, "All pods run the present spec.")
    message = f"{seen.updated_replicas} of {desired} replicas run the present spec."
    if seen.is_stuck:
        return _Verdict(kind, "False", Reason.ROLLOUT_STUCK, f"{message} Ready says what hinders.")
    return _Verdict(kind, "True", Reason.ROLLOUT_IN_PROGRESS, message)


def _zero(service: LLMService) -> tuple[Reason, str]:
    """Return why no replica is asked for."""
    reason = Reason.SUSPENDED if service.spec.suspend else Reason.SCALED_TO_ZERO
    field = "spec.suspend is true" if service.spec.suspend else "spec.replicas is 0"
    return reason, f"{field}. {reason.hint}"


def _available(service: LLMService, seen: Observation) -> _Verdict:
    kind, desired = ConditionType.AVAILABLE, _desired(service, seen)
    if seen.ready_replicas > 0:
        return _Verdict(kind, "True", Reason.SERVING, f"{_replicas(seen, desired)}.")
    if desired == 0:
        reason, why = _zero(service)
        return _Verdict(kind, "False", reason, why)
    return _Verdict(kind, "False", Reason.NO_REPLICA_READY, "No replica answers; Ready says why.")


def _model_ready(service: LLMService, seen: Observation, failure: Failure | None) -> _Verdict:
    kind = ConditionType.MODEL_READY
    if seen.has_loaded_model:
        message = f"A replica holds {service.spec.model.uri} in memory."
        return _Verdict(kind, "True", Reason.MODEL_LOADED, message)
    ready = _ready(service, seen, failure)
    status: ConditionStatus = "False" if ready.reason in _MODEL_REASONS else "Unknown"
    return _Verdict(kind, status, ready.reason, ready.message)


def _replicas(seen: Observation, desired: int) -> str:
    return f"{seen.ready_replicas} of {desired} replicas answer"


def _update(previous: LLMServiceStatus, status: LLMServiceStatus) -> StatusUpdate:
    # The calibration is the metrics server's: a field that we sent would be taken from it.
    written = status.model_dump(
        by_alias=True, exclude_none=True, mode="json", exclude={"autoscaling": {"calibration"}}
    )
    if not written.get("autoscaling"):
        written.pop("autoscaling", None)
    return StatusUpdate(
        status=written,
        events=_events(previous.condition(ConditionType.READY), status),
    )


def _events(before: Condition | None, status: LLMServiceStatus) -> tuple[Event, ...]:
    after = status.condition(ConditionType.READY)
    if after is None or (
        before is not None and (before.status, before.reason) == (after.status, after.reason)
    ):
        return ()
    kind: Literal["Normal", "Warning"] = "Normal" if after.reason in _NOTHING_TO_DO else "Warning"
    return (Event(kind, after.reason, after.message),)

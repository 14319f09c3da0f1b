"""Builds the status from the spec and an Observation, and the Events for its changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

from pydantic import ValidationError

from llmservice_operator import names
from llmservice_operator.api.conditions import (
    MESSAGE_LIMIT,
    Condition,
    ConditionStatus,
    ConditionType,
    ConditionUpdate,
)
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.api.reason_facts import Subject
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.status import (
    AdapterStatus,
    CostStatus,
    EngineStatus,
    LLMServiceStatus,
    RollbackStatus,
)
from llmservice_operator.desired.extra_args import DEPRECATED_ARGUMENT, build_notices
from llmservice_operator.idle_status import (
    LATE_START,
    OLD_ROUTER,
    build_idle,
    build_idle_unavailable,
    build_router_notices,
    build_start_notices,
    is_idle,
)
from llmservice_operator.load_status import LoadView, build_load_status
from llmservice_operator.releases import SHARED_SERVICE, say_shared
from llmservice_operator.route_status import RouteView, build_route_condition
from llmservice_operator.router_status import RouterView, build_router_condition
from llmservice_operator.workload import (
    EnginePin,
    Observation,
    decide_rollback,
    decide_rollout,
    workload_of,
)

FIELD_REWRITTEN: Final = "FieldRewritten"
"""Reason of the Event about an admission webhook that rewrites a field of a child."""

_OF_THE_LOAD: Final = (
    ConditionType.AUTOSCALING_ACTIVE,
    ConditionType.METRICS_AVAILABLE,
    ConditionType.SLO_MET,
)

_OPTIONAL: Final = (*_OF_THE_LOAD, ConditionType.ROUTER_READY, ConditionType.ROUTE_READY)
"""Conditions that only some services have."""

_ENDS_IN_PLACE: Final = frozenset(
    {Reason.WAITING_FOR_GPU, Reason.WAITING_FOR_DEVICE, Reason.VOLUME_IN_USE, Reason.QUOTA_EXCEEDED}
)
"""Problems of a new pod that can disappear when an old pod terminates."""


@dataclass(frozen=True)
class Failure:
    """Reason why this pass could not apply the whole spec."""

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
    """Events about changes: a new status or reason of Ready or of an optional condition, a new
    notice about a deprecated argument or variable, a new rewrite by an admission webhook, and
    another release of the operator that serves the service too."""
    requeue_after_seconds: float | None = None
    """Delay in seconds until a pass is needed even without an event. None if only an event can
    require one."""


def build_status(
    service: LLMService,
    pin: EnginePin | None,
    seen: Observation,
    now: datetime,
    failure: Failure | None = None,
    view: LoadView | None = None,
    rewrites: tuple[str, ...] = (),
    adapters: tuple[AdapterStatus, ...] | None = None,
    pods: str | None = None,
    router: RouterView | None = None,
    operators: tuple[str, ...] | None = None,
    gpu_price: Decimal | None = None,
    route: RouteView | None = None,
) -> StatusUpdate:
    """Return the service's next status and the Events about its changes.

    The engine pin `pin` is None only if the pass could not determine it. The status then keeps the
    earlier pin.
    `rewrites` contains a sentence for each child in which an admission webhook rewrites fields.
    `pods` is the digest of the pods that the spec requires; None if they cannot be built.
    `operators` contains the names of the releases that serve the service.
    `gpu_price` is the price of one GPU per hour in US dollars; None if it is unknown.
    """
    desired = _desired(service, seen)
    report = None if view is None else view.report
    scaling = build_load_status(service, view or LoadView(), seen, desired, now)
    rollout = decide_rollout(service, seen, now)
    rollback = decide_rollback(service, seen, pods, now, may_begin=failure is None)
    is_in_place = rollout.status is not None and not seen.is_rolled_out
    notices, shared = build_notices(service.spec), say_shared(operators or ())
    late, old = build_start_notices(service, report), build_router_notices(service, report)
    router = router or RouterView()
    router_condition = build_router_condition(service, router)
    route_condition = build_route_condition(service, route or RouteView())
    ready = _behind_router(
        _ready(service, seen, desired, failure, rollback.status, report, is_in_place=is_in_place),
        router_condition,
        ConditionType.READY,
    )
    selector = workload_of(service).server_selector(service)
    found = (
        ready,
        _with_notices(
            _progressing(seen, desired, failure, rollback.status, is_in_place=is_in_place),
            (*notices, *late, *old, *rewrites, *shared),
        ),
        _behind_router(
            _available(service, seen, desired, report), router_condition, ConditionType.AVAILABLE
        ),
        _model_ready(service, seen, ready, rollback.status),
        *scaling.conditions,
        *(each for each in (router_condition, route_condition) if each is not None),
    )
    engine = service.status.engine
    if pin is not None:
        untried = (pin.untried and not seen.has_loaded_model) or None
        engine = EngineStatus.model_validate({**asdict(pin), "untried": untried})
    is_reachable = failure is None or failure.reason is not Reason.NAME_CONFLICT
    status = LLMServiceStatus(
        observed_generation=service.generation,
        operators=operators,
        conditions=tuple(
            condition
            for condition in _conditions(service.status, found, service.generation, now)
            # A condition about the load, the router or the route is dropped once the spec no longer
            # requires it.
            if condition.type not in _OPTIONAL or any(condition.type == each.type for each in found)
        ),
        replicas=seen.replicas,
        ready_replicas=seen.ready_replicas,
        updated_replicas=seen.updated_replicas,
        ready=f"{seen.ready_replicas}/{desired}",
        gpus=service.spec.gpus * desired,
        cost=_cost(gpu_price, service.spec.gpus * desired),
        selector=",".join(f"{key}={value}" for key, value in selector.items()),
        url=names.url(service) if is_reachable else None,
        engine=engine,
        router=router.decision.status,
        rollout=rollout.status,
        complete_revision=seen.complete_revision or service.status.complete_revision,
        rollback=rollback.status,
        autoscaling=scaling.autoscaling,
        adapters=adapters,
        slo=scaling.slo,
    )
    update = _update(service.status, status)
    return replace(
        update,
        events=(
            *update.events,
            *_notice_events(service.status, DEPRECATED_ARGUMENT, notices),
            *_notice_events(service.status, FIELD_REWRITTEN, rewrites),
            *_notice_events(service.status, SHARED_SERVICE, shared),
            *_notice_events(service.status, LATE_START, late),
            *_notice_events(service.status, OLD_ROUTER, old),
        ),
        requeue_after_seconds=min(
            (
                each.requeue_after_seconds
                for each in (rollout, rollback)
                if each.requeue_after_seconds is not None
            ),
            default=None,
        ),
    )


def _cost(gpu_price: Decimal | None, gpus: int) -> CostStatus | None:
    if gpu_price is None:
        return None
    # A text, because a structural schema has no exact fractions.
    each, whole = (f"{amount.normalize():f}" for amount in (gpu_price, gpu_price * gpus))
    return CostStatus(per_gpu_hour=each, per_hour=whole)


def build_status_of_failure(
    body: Mapping[str, Any], failure: Failure, now: datetime
) -> StatusUpdate:
    """Return the status of an LLMService whose pass failed without further results.

    Only the conditions and the observed generation change. The other fields of the present status
    stay, because the replicas still run.
    """
    try:
        previous = LLMServiceStatus.model_validate(body.get("status", {}))
    except ValidationError:
        previous = LLMServiceStatus()
    generation = body["metadata"].get("generation", 0)
    found = tuple(
        ConditionUpdate(kind, "False", failure.reason, failure.message)
        for kind in (ConditionType.READY, ConditionType.PROGRESSING)
    )
    status = previous.model_copy(
        update={
            "observed_generation": generation,
            "conditions": _conditions(previous, found, generation, now),
        }
    )
    return _update(previous, status)


def _desired(service: LLMService, seen: Observation) -> int:
    """Return the number of desired replicas: that of the spec, or that of the workload if an
    autoscaler sets it.
    """
    spec = service.spec
    if spec.replicas is not None or spec.suspend or seen.desired is None:
        return spec.desired_replicas
    return seen.desired


def _conditions(
    previous: LLMServiceStatus, found: tuple[ConditionUpdate, ...], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Return the conditions that follow `previous`.

    A condition without an update stays the same.
    """
    said = {
        each.type: Condition.following(
            previous.condition(each.type),
            each.type,
            each.status,
            each.reason,
            each.message,
            generation,
            now,
        )
        for each in found
    }
    both = ((said.get(kind) or previous.condition(kind)) for kind in ConditionType)
    return tuple(condition for condition in both if condition is not None)


def _ready(
    service: LLMService,
    seen: Observation,
    desired: int,
    failure: Failure | None,
    rollback: RollbackStatus | None,
    report: LoadReport | None,
    *,
    is_in_place: bool,
) -> ConditionUpdate:
    kind = ConditionType.READY
    if failure is not None:
        return ConditionUpdate(kind, "False", failure.reason, failure.message)
    if is_idle(service, desired):
        return build_idle(kind, service, report)
    if desired == 0:
        reason, why = _zero(service)
        return ConditionUpdate(kind, "False", reason, why)
    if rollback is not None:
        message = _rolled_back(seen, desired, rollback)
        return ConditionUpdate(kind, "False", Reason.ROLLED_BACK, message)
    if seen.is_rolled_out and seen.ready_replicas == desired:
        message = f"{_replicas(seen, desired)} at {names.url(service)}."
        return ConditionUpdate(kind, "True", Reason.SERVING, message)
    waits = seen.problem is None or seen.problem.reason in _ENDS_IN_PLACE
    if is_in_place and waits:
        return ConditionUpdate(kind, "False", Reason.ROLLOUT_IN_PLACE, _in_place(seen, desired))
    if seen.problem is not None:
        return ConditionUpdate(kind, "False", seen.problem.reason, seen.problem.message)
    message = f"{_replicas(seen, desired)}; pods are being created or replaced."
    return ConditionUpdate(kind, "False", Reason.ROLLOUT_IN_PROGRESS, message)


def _behind_router(
    update: ConditionUpdate, router: ConditionUpdate | None, kind: ConditionType
) -> ConditionUpdate:
    """Return the condition `update`, but False instead of True while no router pod is ready.

    Clients then do not reach the replicas, even if the replicas are ready.
    """
    if update.status != "True" or router is None or router.reason is not Reason.ROUTER_NOT_READY:
        return update
    return ConditionUpdate(kind, "False", router.reason, router.message)


def _progressing(
    seen: Observation,
    desired: int,
    failure: Failure | None,
    rollback: RollbackStatus | None,
    *,
    is_in_place: bool,
) -> ConditionUpdate:
    kind = ConditionType.PROGRESSING
    if failure is not None:
        return ConditionUpdate(kind, "False", failure.reason, failure.message)
    if rollback is not None:
        message = _rolled_back(seen, desired, rollback)
        return ConditionUpdate(kind, "False", Reason.ROLLED_BACK, message)
    if seen.is_rolled_out:
        return ConditionUpdate(
            kind, "False", Reason.ROLLOUT_COMPLETE, "All pods run the current spec."
        )
    message = f"{seen.updated_replicas} of {desired} replicas run the current spec."
    if seen.is_stuck:
        return ConditionUpdate(kind, "False", Reason.ROLLOUT_STUCK, f"{message} Ready says why.")
    if is_in_place:
        return ConditionUpdate(kind, "True", Reason.ROLLOUT_IN_PLACE, _in_place(seen, desired))
    return ConditionUpdate(kind, "True", Reason.ROLLOUT_IN_PROGRESS, message)


def _rolled_back(seen: Observation, desired: int, rollback: RollbackStatus) -> str:
    """Return the message about a rollback: its state, its cause and what to change."""
    problem = ""
    if seen.revision == rollback.revision and seen.problem is not None:
        problem = f" One of them is not ready: {seen.problem.message}"
    return (
        f"{_replicas(seen, desired)}. The rollout of the present spec failed at {rollback.time}, "
        f"so the pods of the last complete rollout (revision {rollback.revision}) return."
        f"{problem} The cause was {rollback.reason}: {rollback.message} {Reason.ROLLED_BACK.hint}"
    )


def _with_notices(update: ConditionUpdate, notices: tuple[str, ...]) -> ConditionUpdate:
    """Return the update with the notices at the end of its message. A long message is shortened, so
    that the notices stay complete.
    """
    if not notices:
        return update
    noted = f". {' '.join(notices)}"
    message = update.message.rstrip(".")[: MESSAGE_LIMIT - len(noted)]
    return replace(update, message=f"{message}{noted}")


def _notice_events(
    previous: LLMServiceStatus, reason: str, notices: tuple[str, ...]
) -> Iterator[Event]:
    """Yield an Event for each notice that the status does not contain yet."""
    before = previous.condition(ConditionType.PROGRESSING)
    for notice in notices:
        if before is None or notice not in before.message:
            yield Event("Warning", reason, notice)


def _in_place(seen: Observation, desired: int) -> str:
    """Return the message of a rollout in which old replicas terminate before new ones start."""
    reason = Reason.ROLLOUT_IN_PLACE
    cost = " With one replica, the service is unavailable in between." if desired == 1 else ""
    done = f"{seen.updated_replicas} of {desired} replicas run the current spec."
    return f"{done} {reason.meaning}{cost} {reason.hint}"


def _zero(service: LLMService) -> tuple[Reason, str]:
    """Return the reason and message for zero desired replicas."""
    reason = Reason.SUSPENDED if service.spec.suspend else Reason.SCALED_TO_ZERO
    if service.spec.suspend:
        cause = "spec.suspend is true"
    elif service.spec.replicas == 0:
        cause = "spec.replicas is 0"
    else:
        cause = f"The {workload_of(service).kind.kind} asks for 0 replicas"
    return reason, f"{cause}. {reason.hint}"


def _available(
    service: LLMService, seen: Observation, desired: int, report: LoadReport | None
) -> ConditionUpdate:
    kind = ConditionType.AVAILABLE
    if seen.ready_replicas > 0:
        return ConditionUpdate(kind, "True", Reason.SERVING, f"{_replicas(seen, desired)}.")
    if is_idle(service, desired):
        return build_idle_unavailable(service, report)
    if desired == 0:
        reason, why = _zero(service)
        return ConditionUpdate(kind, "False", reason, why)
    return ConditionUpdate(
        kind, "False", Reason.NO_REPLICA_READY, "No replica is ready; Ready says why."
    )


def _model_ready(
    service: LLMService,
    seen: Observation,
    ready: ConditionUpdate,
    rollback: RollbackStatus | None,
) -> ConditionUpdate:
    kind = ConditionType.MODEL_READY
    if rollback is not None:
        # The ready pods do not run the present spec.
        return ConditionUpdate(kind, "False", Reason.ROLLED_BACK, rollback.message)
    if seen.has_loaded_model:
        message = f"A replica holds {service.spec.model.uri} in memory."
        return ConditionUpdate(kind, "True", Reason.MODEL_LOADED, message)
    status: ConditionStatus = "False" if ready.reason.about is Subject.MODEL else "Unknown"
    return ConditionUpdate(kind, status, ready.reason, ready.message)


def _replicas(seen: Observation, desired: int) -> str:
    return f"{seen.ready_replicas} of {desired} replicas answer"


def _update(previous: LLMServiceStatus, status: LLMServiceStatus) -> StatusUpdate:
    # The metrics server owns the calibration. If the operator sent the field, the operator would
    # become the owner.
    written = status.model_dump(
        by_alias=True, exclude_none=True, mode="json", exclude={"autoscaling": {"calibration"}}
    )
    if not written.get("autoscaling"):
        written.pop("autoscaling", None)
    kinds = (ConditionType.READY, *_OPTIONAL)
    events = (_event(previous.condition(kind), status.condition(kind)) for kind in kinds)
    return StatusUpdate(
        status=written,
        events=tuple(event for event in events if event is not None),
    )


def _event(before: Condition | None, after: Condition | None) -> Event | None:
    """Return the Event about a condition whose status or reason has changed.

    Returns None if neither has changed, and for a new optional condition with a normal reason.
    """
    if after is None or (
        before is not None and (before.status, before.reason) == (after.status, after.reason)
    ):
        return None
    reason = Reason.named(after.reason)
    kind: Literal["Normal", "Warning"] = "Normal" if reason and reason.is_normal else "Warning"
    if before is None and kind == "Normal" and after.type in _OPTIONAL:
        return None
    return Event(kind, after.reason, after.message)

"""Builds the part of the status that follows from the load: `autoscaling`, `slo` and three
conditions.

The load changes constantly, but the status must not be written for every small change. The measured
values in the status, and the messages that contain them, are updated only after a scaling decision,
after a change of at least five points, or when the status of a condition changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from llmservice_operator.api import Manifest
from llmservice_operator.api.autoscaling import (
    Autoscaling,
    ScalingMetric,
    ScalingMode,
    ScalingProvider,
    Slo,
)
from llmservice_operator.api.conditions import ConditionType, ConditionUpdate
from llmservice_operator.api.fields import timestamp
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.api.reason_facts import Subject
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.status import (
    AutoscalingStatus,
    Recommendation,
    ScalingDecision,
    SloStatus,
)
from llmservice_operator.desired.provider import ProviderPlan, total_load
from llmservice_operator.desired.step_tokens import largest_step
from llmservice_operator.idle_status import build_idle, is_idle
from llmservice_operator.scaling.assess import Missing
from llmservice_operator.scaling.hpa import Decision
from llmservice_operator.scaling.step_model import StepModel
from llmservice_operator.workload import Observation

STEADY_POINTS: Final = 5
DECISIONS_KEPT: Final = 10

_BEFORE_THE_LOAD: Final = frozenset(
    {Missing.STARTING, Missing.NO_READY_REPLICA, Missing.NO_TRAFFIC_YET}
)
"""Reasons for an unknown demand that do not indicate a problem."""

FIRST_REPORT_WITHIN: Final = timedelta(seconds=30)
"""Time until the metrics server has sent the first load report of a service. The default periods
of both processes need less than half of it."""

COLD_STARTS_TO_WAIT: Final = 3
"""Multiple of the cold start time after which a replica that is not ready counts as missing
capacity. The usual wait for a node is added."""


@dataclass(frozen=True)
class LoadView:
    """The load of one service and its scaling at one time."""

    plan: ProviderPlan = field(default_factory=ProviderPlan)
    report: LoadReport | None = None
    """Report of the metrics server; None if there is none."""
    autoscaler: Manifest | None = None
    """The live HPA."""
    decision: Decision | None = None
    """Decision of the operator itself; None if the operator neither scales nor recommends."""


@dataclass(frozen=True)
class LoadStatus:
    autoscaling: AutoscalingStatus | None
    slo: SloStatus | None
    conditions: tuple[ConditionUpdate, ...]


@dataclass(frozen=True)
class _Scaling:
    """A service with `spec.autoscaling`, its load and its replicas at one time."""

    service: LLMService
    autoscaling: Autoscaling
    view: LoadView
    seen: Observation
    desired: int
    now: datetime

    @property
    def total(self) -> float | None:
        return total_load(self.autoscaling, self.view.report, self.now)

    @property
    def recommended(self) -> int:
        """Number of replicas that the load requires."""
        view = self.view
        if is_idle(self.service, self.desired):
            return 0
        if view.decision is not None:
            return view.decision.replicas
        if view.autoscaler is not None and self.autoscaling.mode is ScalingMode.ACTIVE:
            by_hpa: int = view.autoscaler.get("status", {}).get("desiredReplicas") or self.desired
            return by_hpa
        return self.desired

    @property
    def follows_schedule(self) -> bool:
        """Whether the number of replicas is the one of the present window, and the load requires
        fewer.
        """
        floor, total = self.view.plan.floor.replicas, self.total
        is_less = total is None or math.ceil(total / self.autoscaling.target) < floor
        return 0 < floor == self.recommended and is_less


def build_load_status(
    service: LLMService, view: LoadView, seen: Observation, desired: int, now: datetime
) -> LoadStatus:
    """Return the part of the service's next status that follows from the load.

    `desired` is the present number of desired replicas.
    """
    autoscaling, slo = service.spec.autoscaling, service.spec.objectives
    conditions: list[ConditionUpdate] = []
    scaling = None
    if autoscaling is not None:
        it = _Scaling(service, autoscaling, view, seen, desired, now)
        scaling = _autoscaling(it)
        kind = ConditionType.AUTOSCALING_ACTIVE
        if view.plan.left_over:
            conditions.append(
                ConditionUpdate(kind, "False", Reason.KEDA_MISSING, view.plan.left_over)
            )
        elif service.spec.suspend:
            conditions.append(_suspended())
        elif is_idle(service, desired):
            conditions.append(_with_schedule(build_idle(kind, service, view.report), view.plan))
        else:
            conditions.append(_with_schedule(_active(it, scaling), view.plan))
    if autoscaling is not None or slo.is_limited:
        conditions.append(_metrics(service, view, now))
    achieved = None
    if slo.is_limited:
        was_decided = scaling is not None and _was_decided(service, scaling)
        achieved, met = _slo(service, slo, view.report, was_decided=was_decided)
        conditions.append(met)
    return LoadStatus(scaling, achieved, tuple(conditions))


def _suspended() -> ConditionUpdate:
    reason = Reason.SUSPENDED
    message = f"spec.suspend is true. {reason.hint}"
    return ConditionUpdate(ConditionType.AUTOSCALING_ACTIVE, "False", reason, message)


def _autoscaling(it: _Scaling) -> AutoscalingStatus:
    before = it.service.status.autoscaling or AutoscalingStatus()
    if it.service.spec.suspend:
        # The status stays the same. A resumed service returns to its earlier number of replicas, so
        # a suspension is not a scaling decision.
        return before
    plan, target, total = it.view.plan, it.autoscaling.target, it.total
    provider = ScalingProvider.KEDA if plan.left_over else plan.autoscaler.provider
    current = None if total is None or it.desired == 0 else round(total / it.desired)
    is_decision = before.desired_replicas not in (None, it.recommended)
    if not is_decision and _is_steady(before.current, current):
        current = before.current
    status = AutoscalingStatus(
        provider=None if provider is None else provider.value,
        desired_replicas=it.recommended,
        limiting_metric=before.limiting_metric,
        current=current,
        target=target,
        load=f"{'?' if current is None else current}/{target}",
        decisions=before.decisions,
        started_window=None if plan.floor.started is None else timestamp(plan.floor.started),
        recommendations=before.recommendations,
    )
    if is_decision:
        status = status.model_copy(update={"decisions": _decisions(it, before)})
    if is_decision or current != before.current:
        status = status.model_copy(
            update={
                "limiting_metric": _limiting_metric(it.autoscaling, it.view.report),
                "recommendations": _recommendations(it, status),
            }
        )
    return status


def _was_decided(service: LLMService, status: AutoscalingStatus) -> bool:
    before = service.status.autoscaling
    return before is not None and before.desired_replicas != status.desired_replicas


def _is_steady(before: int | None, after: int | None) -> bool:
    if before is None or after is None:
        return before is after
    return abs(before - after) < STEADY_POINTS


def _decisions(it: _Scaling, before: AutoscalingStatus) -> tuple[ScalingDecision, ...]:
    metric, target, total = it.autoscaling.metric, it.autoscaling.target, it.total
    unit = f" {metric.unit}".rstrip()
    load = "unknown" if total is None else f"{total:.0f}{unit}"
    reason = f"{metric} {load}, {target}{unit} for each replica"
    if is_idle(it.service, it.desired):
        reason = f"no request for {it.autoscaling.idle_after_seconds} s"
    elif it.follows_schedule:
        reason = f"the minimum in a window of idle.schedule: {reason}"
    elif before.desired_replicas == 0 and it.service.spec.scales_to_zero:
        reason = "a request came while no replica ran"
    elif it.view.decision is not None:
        reason = f"{it.view.decision.reason}: {reason}"
    decision = ScalingDecision(
        time=timestamp(it.now),
        from_replicas=before.desired_replicas or 0,
        to_replicas=it.recommended,
        reason=reason,
    )
    return (decision, *(before.decisions or ()))[:DECISIONS_KEPT]


def _limiting_metric(autoscaling: Autoscaling, report: LoadReport | None) -> str:
    is_queueing = report is not None and (report.backlog_gpu_seconds or 0) > 0
    is_default = autoscaling.metric is ScalingMetric.EFFECTIVE_GPU_UTILIZATION
    return "Backlog" if is_queueing and is_default else autoscaling.metric.value


def _recommendations(it: _Scaling, status: AutoscalingStatus) -> tuple[Recommendation, ...] | None:
    autoscaling, desired = it.autoscaling, it.desired
    found: list[Recommendation] = []
    if _is_short(autoscaling, status, desired) and status.current is not None:
        needed = -(-status.current * desired // autoscaling.target)
        found.append(
            Recommendation(
                field="autoscaling.maxReplicas",
                value=str(needed),
                reason=f"The load was {status.current * desired} % of one replica at the maximum "
                f"of {autoscaling.max_replicas} replicas.",
            )
        )
    learned = None if it.view.report is None else it.view.report.calibration
    itl = it.service.spec.objectives.itl_milliseconds
    batching = it.service.spec.engine.batching
    if learned is not None and itl is not None:
        tokens = largest_step(StepModel(*learned.step_seconds), itl)
        written = None if batching is None else batching.max_num_batched_tokens
        if tokens is not None and written != tokens:
            found.append(
                Recommendation(
                    field="engine.batching.maxNumBatchedTokens",
                    value=str(tokens),
                    reason=f"As many prompt tokens as one step computes within the ITL of {itl} ms,"
                    " measured on this service's own traffic.",
                )
            )
    return tuple(found) or None


def _is_short(autoscaling: Autoscaling, status: AutoscalingStatus, desired: int) -> bool:
    """Return whether the load requires more replicas than the maximum."""
    is_full = desired >= autoscaling.max_replicas
    return is_full and status.current is not None and status.current > autoscaling.target


def _active(it: _Scaling, status: AutoscalingStatus) -> ConditionUpdate:
    autoscaling, view, desired = it.autoscaling, it.view, it.desired
    kind, plan = ConditionType.AUTOSCALING_ACTIVE, view.plan
    stays = f"The number of replicas stays at {desired}."
    match autoscaling.mode:
        case ScalingMode.PAUSED:
            message = f"{stays} {Reason.PAUSED.hint}"
            return ConditionUpdate(kind, "False", Reason.PAUSED, message)
        case ScalingMode.RECOMMEND:
            message = f"{stays} The load asks for {status.desired_replicas}."
            message = f"{message} {Reason.RECOMMENDING.hint}"
            return ConditionUpdate(kind, "False", Reason.RECOMMENDING, message)
    if plan.hindrance is not None:
        message = f"{stays} {plan.note} {plan.hindrance.hint}"
        return ConditionUpdate(kind, "False", plan.hindrance, message)
    if it.total is None:
        reason, why = _missing(it.service, view.report, it.now)
        return ConditionUpdate(kind, "False", reason, _with_note(f"{stays} {why}", plan))
    refused = _controller_problem(view, "AbleToScale")
    if refused is not None:
        message = f"{stays} The HorizontalPodAutoscaler cannot scale: {refused}"
        return ConditionUpdate(kind, "False", Reason.OBJECT_REFUSED, _with_note(message, plan))
    broken = _controller_problem(view, "ScalingActive")
    if broken is not None:
        message = _with_note(f"{stays} The HorizontalPodAutoscaler reports: {broken}", plan)
        return ConditionUpdate(kind, "False", Reason.METRICS_MISSING, message)
    hindered = _hindered(it)
    if hindered is not None:
        return ConditionUpdate(kind, "True", Reason.NO_CAPACITY, hindered)
    if _is_short(autoscaling, status, desired):
        message = (
            f"At the maximum of {autoscaling.max_replicas} replicas, each is at {status.load}. "
            f"{Reason.AT_MAXIMUM.hint}"
        )
        return ConditionUpdate(kind, "True", Reason.AT_MAXIMUM, _with_note(message, plan))
    message = f"{_replicas(desired)} at {status.load} of {autoscaling.metric}.{_foreseen(it)}"
    return ConditionUpdate(kind, "True", Reason.FOLLOWING_LOAD, _with_note(message, plan))


def _foreseen(it: _Scaling) -> str:
    """Return a sentence about the load that is foreseen. Empty without one."""
    report = it.view.report
    if report is None or not report.foreseen_percent:
        return ""
    replicas = it.autoscaling.clamp(math.ceil(report.foreseen_percent / it.autoscaling.target))
    return (
        f" At least {replicas} are kept ready, because the load usually rises at this time "
        "(forecast: Off stops this)."
    )


def _hindered(it: _Scaling) -> str | None:
    """Return a message if replicas that the load requires do not become ready; None otherwise."""
    report, seen, desired = it.view.report, it.seen, it.desired
    if report is None or desired <= seen.ready_replicas:
        return None
    has_no_room = seen.problem is not None and seen.problem.reason.about is Subject.ROOM
    patience = timedelta(
        seconds=report.node_wait_seconds + COLD_STARTS_TO_WAIT * report.cold_start_seconds
    )
    is_late = seen.not_ready_since is not None and it.now - seen.not_ready_since > patience
    if not has_no_room and not is_late:
        return None
    said = f"{seen.ready_replicas} of {desired} replicas run"
    if not has_no_room:
        said += ", and one was not ready within three cold starts"
    why = "" if seen.problem is None else f" {seen.problem.message}"
    return f"{said}. {Reason.NO_CAPACITY.hint}{why}"


def _with_schedule(update: ConditionUpdate, plan: ProviderPlan) -> ConditionUpdate:
    """Return the condition with a sentence about the present or the next window of the schedule."""
    floor = plan.floor
    if plan.autoscaler.provider is None:
        return update  # nothing starts replicas
    if floor.replicas:
        time = _minute(floor.starts or floor.ends)
        verb = "begins" if floor.starts else "ends"
        when = f", which {verb} at {time}," if time else ""
        number = "1 replica" if floor.replicas == 1 else f"{floor.replicas} replicas"
        said = f"A window of idle.schedule{when} requires at least {number}."
    elif floor.next_start is not None:
        said = f"The next window of idle.schedule begins at {_minute(floor.next_start)}."
    else:
        return update
    return replace(update, message=f"{update.message} {said}")


def _minute(time: datetime | None) -> str:
    return "" if time is None else f"{time:%Y-%m-%d %H:%M} {time.tzname()}"


def _replicas(number: int) -> str:
    return "1 replica" if number == 1 else f"{number} replicas, each"


def _with_note(message: str, plan: ProviderPlan) -> str:
    return f"{message} {plan.note}".rstrip()


def _controller_problem(view: LoadView, type_: str) -> str | None:
    """Return the message of the HPA controller if its condition of this type is False; None
    otherwise.

    ScalingActive is False if the controller cannot read the metric, and AbleToScale if it cannot
    change the number of replicas.
    """
    conditions = (view.autoscaler or {}).get("status", {}).get("conditions", [])
    for each in conditions:
        if each["type"] == type_ and each.get("status") == "False":
            return str(each.get("message") or each.get("reason"))
    return None


def _metrics(service: LLMService, view: LoadView, now: datetime) -> ConditionUpdate:
    kind, autoscaling = ConditionType.METRICS_AVAILABLE, service.spec.autoscaling
    known = None if view.report is None else view.report.demand_percent
    if autoscaling is not None:
        known = total_load(autoscaling, view.report, now)
    if known is None:
        reason, why = _missing(service, view.report, now)
        return ConditionUpdate(kind, "False", reason, why)
    reason = Reason.METRICS_AVAILABLE
    return ConditionUpdate(kind, "True", reason, reason.meaning)


def _missing(service: LLMService, report: LoadReport | None, now: datetime) -> tuple[Reason, str]:
    if report is None:
        if _awaits_first_report(service, now):
            reason = Reason.WAITING_FOR_TRAFFIC
            return reason, "The metrics server has not sent the first load report yet."
        reason = Reason.METRICS_MISSING
        return (
            reason,
            f"The metrics server has sent no load report of this service lately. {reason.hint}",
        )
    waits = report.missing in _BEFORE_THE_LOAD
    return (Reason.WAITING_FOR_TRAFFIC if waits else Reason.METRICS_MISSING), report.message


def _awaits_first_report(service: LLMService, now: datetime) -> bool:
    """Return whether the metrics server perhaps does not know the service yet.

    The condition keeps its transition time from its first appearance, which is that of the service
    or of `spec.autoscaling` and `spec.slo`, until the load is known.
    """
    before = service.status.condition(ConditionType.METRICS_AVAILABLE)
    if before is None:
        return True
    is_young = now - datetime.fromisoformat(before.last_transition_time) < FIRST_REPORT_WITHIN
    return before.reason == Reason.WAITING_FOR_TRAFFIC and is_young


def _slo(
    service: LLMService, slo: Slo, report: LoadReport | None, *, was_decided: bool
) -> tuple[SloStatus | None, ConditionUpdate]:
    kind, before = ConditionType.SLO_MET, service.status.condition(ConditionType.SLO_MET)
    measured = None if report is None else report.attainment_percent
    if report is None or measured is None:
        for known in (Reason.SLO_MET, Reason.SLO_MISSED, Reason.SLO_UNREACHABLE):
            if before is not None and before.reason == known:
                # Without new requests, the result for the last requests stays valid.
                return service.status.slo, ConditionUpdate(
                    kind, before.status, known, before.message
                )
        reason = Reason.WAITING_FOR_TRAFFIC
        return None, ConditionUpdate(
            kind, "Unknown", reason, f"No request has been measured yet. {reason.hint}"
        )
    # Without one point of hysteresis, an attainment near the objective would cause an Event at
    # every small change.
    was_missed = before is not None and before.status == "False"
    is_met = measured >= slo.objective_percent + was_missed
    achieved = service.status.slo
    is_changed = before is None or (before.status == "True") != is_met
    if (
        achieved is None
        or was_decided
        or is_changed
        or not _is_steady(achieved.attainment_percent, round(measured))
    ):
        achieved = SloStatus(
            ttft_p95=_whole(report.ttft_p95_milliseconds),
            itl_p95=_whole(report.itl_p95_milliseconds),
            attainment_percent=round(measured),
        )
    least = "" if is_met else _least_limits(report)
    reason = Reason.SLO_MET if is_met else Reason.SLO_UNREACHABLE if least else Reason.SLO_MISSED
    if least and achieved is service.status.slo and before is not None and before.reason == reason:
        return achieved, ConditionUpdate(kind, "False", reason, before.message)
    message = (
        f"{achieved.attainment_percent} % of the requests were within {slo.words}; the objective "
        f"is {slo.objective_percent} %."
    )
    if not is_met:
        message = f"{message}{least} {reason.hint}"
    return achieved, ConditionUpdate(kind, "True" if is_met else "False", reason, message)


def _least_limits(report: LoadReport) -> str:
    """Return a sentence on the limits that an idle replica does not attain. Empty without any."""
    least = {"a TTFT": report.least_ttft_milliseconds, "a mean ITL": report.least_itl_milliseconds}
    named = [f"{name} of {math.ceil(ms)} ms" for name, ms in least.items() if ms is not None]
    return f" An idle replica attains at best {' and '.join(named)}." if named else ""


def _whole(milliseconds: float | None) -> int | None:
    return None if milliseconds is None else round(milliseconds)

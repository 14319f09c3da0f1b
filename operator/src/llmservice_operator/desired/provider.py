"""Chooses the provider that scales a service in this cluster: an HPA, KEDA or the operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.autoscaling import (
    Autoscaling,
    ScalingMode,
    ScalingProvider,
)
from llmservice_operator.api.load_report import ExternalMetrics, LoadReport
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.autoscaler import (
    DEFAULT_WINDOW_SECONDS,
    Autoscaler,
    behavior_of,
    keeps_tolerance,
)
from llmservice_operator.desired.schedule import Floor
from llmservice_operator.scaling.scale_down import window_to_write
from llmservice_operator.settings import OperatorSettings


@dataclass(frozen=True)
class ProviderPlan:
    autoscaler: Autoscaler = field(default_factory=Autoscaler)
    """The autoscaler. If its provider is None, neither the operator nor an object that the operator
    applies scales the service."""
    hindrance: Reason | None = None
    """Reason why no provider can change the replicas."""
    note: str = ""
    """Sentence about the choice of the provider, which names, for example, the owner of the metrics
    API and the provider that scales instead; may be empty."""
    left_over: str = ""
    """Message about a ScaledObject that still scales this service and that the operator may not
    delete; empty if there is none."""
    idle_replicas: int | None = None
    """Number of replicas that an idle service should have; None if it is not idle."""
    floor: Floor = field(default_factory=Floor)
    """Minimum number of replicas by the schedule."""


def plan_provider(
    service: LLMService,
    settings: OperatorSettings,
    report: LoadReport | None,
    live: Manifest | None,
    now: datetime,
    *,
    keda_is_installed: bool,
    offers_tolerance: bool = False,
    unremovable: str | None = None,
    idle_replicas: int | None = None,
    floor: Floor | None = None,
) -> ProviderPlan:
    """Return the plan; `live` is the present HPA or ScaledObject of the service.

    With `offers_tolerance`, the HPA has its tolerance even if the API server dropped it before.
    Without a `report`, the provider Auto keeps its present choice. `unremovable` names a
    ScaledObject that scales the service and on which the operator has no rights. `idle_replicas` is
    the number of replicas that an idle service should have. `floor` is the minimum by the schedule.
    """
    autoscaling, floor = service.spec.autoscaling, floor or Floor()
    left_over = "" if unremovable is None else _advice(service, unremovable)
    if autoscaling is None:
        return ProviderPlan(left_over=left_over)
    provider, hindrance, note = _provider(service, settings, report, keda_is_installed)
    # Two autoscalers would undo each other's changes.
    is_free = autoscaling.mode is ScalingMode.ACTIVE and not left_over
    idle_replicas = idle_replicas if is_free else None
    return ProviderPlan(
        Autoscaler(
            provider if is_free else None,
            _window_seconds(report, live, now),
            offers_tolerance or keeps_tolerance(live),
            is_idle=idle_replicas is not None,
            scheduled_replicas=floor.replicas,
        ),
        hindrance,
        note,
        left_over,
        idle_replicas,
        floor,
    )


def _advice(service: LLMService, scaled_object: str) -> str:
    return (
        f"KEDA scales by the ScaledObject {scaled_object}, and the operator has no rights on it. "
        f"Run `kubectl delete scaledobject {scaled_object} -n {service.namespace}`, or set the "
        "chart value keda.enabled."
    )


def _provider(
    service: LLMService,
    settings: OperatorSettings,
    report: LoadReport | None,
    keda_is_installed: bool,
) -> tuple[ScalingProvider | None, Reason | None, str]:
    autoscaling, before = service.spec.autoscaling, _provider_before(service)
    if before is ScalingProvider.KEDA and not keda_is_installed:
        before = None
    requested = ScalingProvider.AUTO if autoscaling is None else autoscaling.provider
    external = None if report is None else report.external_metrics
    why = _why_away(settings, external)
    is_away = bool(why)
    match requested:
        case ScalingProvider.DIRECT:
            return ScalingProvider.DIRECT, None, ""
        case ScalingProvider.KEDA if keda_is_installed:
            return ScalingProvider.KEDA, None, ""
        case ScalingProvider.KEDA:
            return None, Reason.KEDA_MISSING, Reason.KEDA_MISSING.meaning
        case ScalingProvider.EXTERNAL if is_away:
            return None, Reason.FOREIGN_METRICS_API, f"{why}."
        case ScalingProvider.AUTO if is_away and keda_is_installed:
            return ScalingProvider.KEDA, None, f"{why}; KEDA scales instead."
        case ScalingProvider.AUTO if is_away:
            return ScalingProvider.DIRECT, None, f"{why}; the operator itself scales instead."
        case ScalingProvider.AUTO if external is None and before is not None:
            # An outage of the metrics server is no reason to change the provider.
            return before, None, ""
        case _:
            return ScalingProvider.EXTERNAL, None, ""


def _why_away(settings: OperatorSettings, external: ExternalMetrics | None) -> str:
    """Return why no HorizontalPodAutoscaler can read the load in this cluster; empty if one can.

    A metrics server that may register itself does so within seconds, so there is no reason while
    its API is not served yet.
    """
    if external is not None and external.is_served:
        return ""
    if not settings.metrics_api:
        return (
            "The chart value metricsAPI.enabled is false, so the operator serves no "
            f"{names.EXTERNAL_METRICS_GROUP}"
        )
    if external is None:
        return ""
    if external.owner:
        return (
            f"{names.EXTERNAL_METRICS_GROUP} belongs to {external.owner} in this cluster and is "
            "left alone"
        )
    if settings.watch_namespaces:
        return (
            f"The operator is confined to namespaces and serves no {names.EXTERNAL_METRICS_GROUP}"
        )
    return ""


def _provider_before(service: LLMService) -> ScalingProvider | None:
    status = service.status.autoscaling
    return ScalingProvider(status.provider) if status is not None and status.provider else None


def _window_seconds(report: LoadReport | None, live: Manifest | None, now: datetime) -> int:
    """Return the scale-down window in seconds, which follows the learned window."""
    present = None
    if live is not None:
        present = behavior_of(live).get("scaleDown", {}).get("stabilizationWindowSeconds")
    learned = DEFAULT_WINDOW_SECONDS if report is None else round(report.scale_down_window_seconds)
    if present is None or live is None:
        return learned
    if report is None or report.demand_percent is None:
        # An unknown load may be bursty, so the present window stays.
        return int(present)
    age = (now - _written_at(live, now)).total_seconds()
    return round(window_to_write(present, learned, age))


def _written_at(live: Manifest, now: datetime) -> datetime:
    """Return the time of the operator's last change of the object, from its managedFields; `now` if
    they contain no such time.
    """
    for entry in live["metadata"].get("managedFields", []):
        if entry.get("manager") == names.FIELD_MANAGER and "time" in entry:
            return datetime.fromisoformat(entry["time"])
    return now


def total_load(autoscaling: Autoscaling, report: LoadReport | None, now: datetime) -> float | None:
    """Return the total of the service's metric, in the metric's unit; None while it is unknown."""
    if report is None or report.is_stale(now.timestamp()):
        return None
    return report.total(autoscaling.metric)

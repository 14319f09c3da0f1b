"""Status of an LLMService, as the operator reports it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from llmservice_operator.api.calibration import Calibration
from llmservice_operator.api.conditions import Condition, ConditionType
from llmservice_operator.api.fields import ATOMIC, Fields, keyed_by


def _atomic(longest: int) -> Any:
    return Field(max_length=longest, json_schema_extra=ATOMIC)


class EngineStatus(Fields):
    image: Annotated[str, Field(max_length=512)]
    """Image of the model servers. Without a change of the spec, an upgrade of the operator replaces
    a default image only while untried is true."""
    version: Annotated[str, Field(max_length=64)]
    """vLLM version that the engine's arguments are written for."""
    default_for: Annotated[str, Field(max_length=32)] | None = None
    """Accelerator type of the default image that the operator chose. Absent if spec.engine.image
    sets the image."""
    assumed_version: Annotated[str, Field(max_length=64)] | None = None
    """vLLM version that the operator assumes for spec.engine.image when spec.engine.version is
    unset. Absent when it equals `version` or spec.engine.image is unset."""
    untried: bool | None = None
    """True until a replica with this default image becomes ready, absent afterwards and for
    spec.engine.image. While true, a new default image of the operator replaces this image."""


class AdapterStatus(Fields):
    name: Annotated[str, Field(max_length=128)]
    """Name that clients send as `model`."""
    served: bool
    """Whether clients get this adapter; always true while the metrics server is off. While false,
    clients get the previous adapter of the same name, if there is one."""
    replicas: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], _atomic(100)] = ()
    """Names of the pods that have loaded the adapter, in alphabetical order; at most 100."""
    message: Annotated[str, Field(max_length=512)] | None = None
    """Reason why a replica does not have the adapter, or why this is unknown; absent when all
    replicas have the adapter."""


class ScalingDecision(Fields):
    time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """Time of the decision."""
    from_replicas: Annotated[int, Field(ge=0)]
    """Desired replicas before the decision."""
    to_replicas: Annotated[int, Field(ge=0)]
    """Desired replicas after the decision."""
    reason: Annotated[str, Field(max_length=256)]
    """Cause of the decision, with the load at that time."""


class Recommendation(Fields):
    field: Annotated[str, Field(max_length=128)]
    """Field of the spec that should change."""
    value: Annotated[str, Field(max_length=64)]
    """Value to set."""
    reason: Annotated[str, Field(max_length=512)]
    """Measurement that supports the recommendation."""


class AutoscalingStatus(Fields):
    """State of autoscaling. The current value is updated with each decision, when it becomes known
    or unknown, and when it has changed by at least five points.
    """

    provider: Annotated[str, Field(max_length=16)] | None = None
    """Component that changes the number of replicas: External, KEDA or Direct; absent when none
    does."""
    desired_replicas: Annotated[int, Field(ge=0)] | None = None
    """Number of replicas that the autoscaler requests, within minReplicas and maxReplicas; with
    mode Recommend, the recommended number; with mode Paused, the present number."""
    limiting_metric: Annotated[str, Field(max_length=64)] | None = None
    """Metric that decides the number of replicas: spec.autoscaling.metric, or Backlog if that
    metric is EffectiveGPUUtilization and requests queue up."""
    current: Annotated[int, Field(ge=0)] | None = None
    """Current value of the metric per replica, in percent or requests; absent while it is unknown,
    and while there are no replicas."""
    target: Annotated[int, Field(ge=0)] | None = None
    """Target value of the metric per replica, in percent or requests."""
    load: Annotated[str, Field(max_length=32)] | None = None
    """Current and target value as CURRENT/TARGET, with ? for an unknown current value."""
    decisions: Annotated[tuple[ScalingDecision, ...], _atomic(10)] | None = None
    """The last ten changes of desiredReplicas, newest first."""
    started_window: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """Begin of the next window of idle.schedule, if replicas have started for it ahead of time.
    They run until its end, even if the learned time of a cold start becomes shorter. Of several
    such windows, it is the last one; absent without one."""
    recommendations: Annotated[tuple[Recommendation, ...], _atomic(8)] | None = None
    """Improvements that require a change of the spec."""
    calibration: Calibration | None = None
    """Measurements of this service that the metrics server stores here, so that a new metrics
    server can continue with them."""


class SloStatus(Fields):
    """Latency of the requests of the most recent minute that had requests. The numbers are updated
    with each scaling decision, when the status of SLOMet changes, and when the attainment has
    changed by at least five points.
    """

    ttft_p95: Annotated[int, Field(ge=0)] | None = None
    """95th percentile of the time to first token, in milliseconds."""
    itl_p95: Annotated[int, Field(ge=0)] | None = None
    """95th percentile of the requests' mean inter-token latency, in milliseconds."""
    attainment_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Percentage of the requests that met the SLO."""


class CostStatus(Fields):
    """Price of the GPUs, in US dollars."""

    per_gpu_hour: Annotated[str, Field(max_length=32)]
    """Price of one GPU per hour: pricePerHour of the accelerator class."""
    per_hour: Annotated[str, Field(max_length=32)]
    """Price per hour of the GPUs that the desired replicas need."""


class RolloutStatus(Fields):
    in_place_since: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """Start of the rollout in place. From this time on, each old replica terminates before its
    successor starts, because no accelerator, quota or volume is free for an additional replica."""


class RouterPhase(StrEnum):
    STARTING = "Starting"
    SERVING = "Serving"
    STOPPING = "Stopping"


class RouterStatus(Fields):
    phase: RouterPhase
    """Starting: clients still reach the replicas directly, until all router pods are ready.
    Serving: clients reach the router. Stopping: clients reach the replicas directly again, and the
    router pods remain until requests of older connections have ended."""
    since: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """Start of the phase."""
    ready: Annotated[str, Field(max_length=32)] | None = None
    """Ready router pods out of the desired number, such as 1/2."""


CAUSE_LIMIT = 1024
"""Maximum length of the recorded cause of a rollback, in characters."""


class RollbackStatus(Fields):
    time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """Time at which the operator decided on the rollback."""
    revision: Annotated[str, Field(max_length=63)]
    """Revision of the last complete rollout, which the rollback restores. It is the value of the
    label pod-template-hash."""
    failed_pods: Annotated[str, Field(max_length=64)]
    """Digest of the pods whose rollout failed. The rollback ends when the spec describes other
    pods, or sets rolloutStrategy.autoRollback to false."""
    reason: Annotated[str, Field(max_length=63)]
    """Cause of the failure, as a reason of the condition Ready."""
    message: Annotated[str, Field(max_length=CAUSE_LIMIT)]
    """Cause of the failure, as a sentence."""


OPERATORS_LIMIT = 4
"""Maximum number of releases of the operator that a status lists."""


class LLMServiceStatus(Fields):
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """metadata.generation that this status is about."""
    operators: (
        Annotated[
            tuple[Annotated[str, Field(max_length=317)], ...],
            _atomic(OPERATORS_LIMIT),
        ]
        | None
    ) = None
    """Releases of the operator that serve this service, as NAMESPACE/NAME of their Lease. Several
    entries are a mistake in the settings, and Progressing says what to change. A release that has
    ended disappears after 10 minutes."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra=keyed_by("type"),
        ),
    ] = ()
    """Conditions: Ready (the summary), Progressing, Available and ModelReady; with autoscaling,
    also AutoscalingActive and MetricsAvailable; with latency objectives, also MetricsAvailable and
    SLOMet; with a router, also RouterReady."""
    replicas: Annotated[int, Field(ge=0)] | None = None
    """Number of replicas, including those of an earlier revision."""
    ready_replicas: Annotated[int, Field(ge=0)] | None = None
    """Number of ready replicas."""
    updated_replicas: Annotated[int, Field(ge=0)] | None = None
    """Number of replicas of the current revision."""
    ready: Annotated[str, Field(max_length=32)] | None = None
    """Ready replicas out of the desired number, such as 1/2."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """Total number of GPUs that the desired replicas need."""
    cost: CostStatus | None = None
    """Price of the GPUs; absent if the accelerator class has no pricePerHour in the chart's
    values."""
    selector: Annotated[str, Field(max_length=256)] | None = None
    """Label selector of the pods that serve requests, one per replica. `kubectl scale` and
    autoscalers read it."""
    url: Annotated[str, Field(max_length=512)] | None = None
    """Address of the API inside the cluster; absent while the reason of Ready is NameConflict."""
    engine: EngineStatus | None = None
    """Image and vLLM version of the model servers."""
    router: RouterStatus | None = None
    """State of the router; absent while the service has none."""
    rollout: RolloutStatus | None = None
    """State of a rollout of type Auto after the operator has decided to terminate each old replica
    before its successor starts; absent before this decision and after the rollout."""
    complete_revision: Annotated[str, Field(max_length=63)] | None = None
    """Revision of the pods of the last complete rollout. rolloutStrategy.autoRollback restores
    these pods."""
    rollback: RollbackStatus | None = None
    """Rollback that replaces the pods of the current spec; absent while none is in effect."""
    autoscaling: AutoscalingStatus | None = None
    """State of autoscaling. Without spec.autoscaling, it is absent or contains only an earlier
    calibration."""
    adapters: Annotated[tuple[AdapterStatus, ...], _atomic(32)] | None = None
    """State of the LoRA adapters; absent without spec.model.adapters."""
    slo: SloStatus | None = None
    """Measured latency of the requests; absent without objectives, and while nothing has been
    measured."""

    def condition(self, kind: ConditionType) -> Condition | None:
        return next((each for each in self.conditions if each.type == kind), None)

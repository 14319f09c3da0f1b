"""What the operator reports in an LLMService's status."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from llmservice_operator.api.calibration import Calibration
from llmservice_operator.api.conditions import Condition, ConditionType
from llmservice_operator.api.fields import Fields


def _atomic(longest: int) -> Any:
    return Field(max_length=longest, json_schema_extra={"x-kubernetes-list-type": "atomic"})


class EngineStatus(Fields):
    image: Annotated[str, Field(max_length=512)]
    """Image of the model servers; kept when a new operator brings a new default."""
    version: Annotated[str, Field(max_length=64)]
    """vLLM version that the arguments are written for."""
    default_for: Annotated[str, Field(max_length=32)] | None = None
    """Accelerator type whose default this image was when it was chosen; absent when
    spec.engine.image names the image."""
    assumed_version: Annotated[str, Field(max_length=64)] | None = None
    """vLLM version that the image of spec.engine.image counts as once spec.engine.version is gone;
    absent when that is version."""
    untried: bool | None = None
    """True until a replica with this default image has been ready: until then a new default of the
    operator replaces it."""


class ScalingDecision(Fields):
    time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When it was taken."""
    from_replicas: Annotated[int, Field(ge=0)]
    """Replicas wanted before."""
    to_replicas: Annotated[int, Field(ge=0)]
    """Replicas wanted from then on."""
    reason: Annotated[str, Field(max_length=256)]
    """What decided, with the load at that time."""


class Recommendation(Fields):
    field: Annotated[str, Field(max_length=128)]
    """The field of the spec that should change."""
    value: Annotated[str, Field(max_length=64)]
    """What to write there."""
    reason: Annotated[str, Field(max_length=512)]
    """What was learned that speaks for it."""


class AutoscalingStatus(Fields):
    """Numbers move on a decision, or when the load has changed by five points."""

    provider: Annotated[str, Field(max_length=16)] | None = None
    """Who changes the replicas: External, KEDA or Direct; absent while nobody does."""
    desired_replicas: Annotated[int, Field(ge=0)] | None = None
    """Replicas that the load asks for, within minReplicas and maxReplicas."""
    limiting_metric: Annotated[str, Field(max_length=64)] | None = None
    """What the replicas are decided by: spec.autoscaling.metric, or Backlog while requests queue
    up."""
    current: Annotated[int, Field(ge=0)] | None = None
    """The metric of each replica now, in percent or requests; absent while unknown."""
    target: Annotated[int, Field(ge=0)] | None = None
    """What it is to be."""
    load: Annotated[str, Field(max_length=32)] | None = None
    """The two as CURRENT/TARGET."""
    decisions: Annotated[tuple[ScalingDecision, ...], _atomic(10)] | None = None
    """The last ten changes of desiredReplicas, newest first."""
    recommendations: Annotated[tuple[Recommendation, ...], _atomic(8)] | None = None
    """What was learned that only a change of the spec can put to use."""
    calibration: Calibration | None = None
    """What the metrics server has learned about this service, kept so that a new one need not start
    anew; written by it alone."""


class SloStatus(Fields):
    """Of the last minute's requests; moves when a decision or a change of five points does."""

    ttft_p95: Annotated[int, Field(ge=0)] | None = None
    """95th percentile of the time to first token, in milliseconds."""
    itl_p95: Annotated[int, Field(ge=0)] | None = None
    """95th percentile of the requests' mean inter-token latency, in milliseconds."""
    attainment_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Share of the requests within the SLO."""


class RolloutStatus(Fields):
    in_place_since: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """Since when each old replica ends before its successor starts, because no accelerator is free
    for one more."""


class LLMServiceStatus(Fields):
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The metadata.generation that this status speaks about."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = ()
    """Ready (the summary), Progressing, Available, ModelReady and, where the load is watched,
    AutoscalingActive, MetricsAvailable and SLOMet."""
    replicas: Annotated[int, Field(ge=0)] | None = None
    """Pods that exist, of this spec or an earlier one."""
    ready_replicas: Annotated[int, Field(ge=0)] | None = None
    """Pods that answer."""
    updated_replicas: Annotated[int, Field(ge=0)] | None = None
    """Pods of the present spec."""
    ready: Annotated[str, Field(max_length=32)] | None = None
    """Pods that answer out of those asked for, such as 1/2."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs that all replicas together ask for."""
    selector: Annotated[str, Field(max_length=256)] | None = None
    """Label selector of the pods, for `kubectl scale` and autoscalers."""
    url: Annotated[str, Field(max_length=512)] | None = None
    """Address of the API inside the cluster."""
    engine: EngineStatus | None = None
    """What the model servers run."""
    rollout: RolloutStatus | None = None
    """How the rollout goes on that is under way; absent while new replicas start beside the old
    ones."""
    autoscaling: AutoscalingStatus | None = None
    """What the autoscaler sees and does; absent while spec.autoscaling is."""
    slo: SloStatus | None = None
    """What the requests achieve; absent while no limit is in force, or nothing was measured."""

    def condition(self, kind: ConditionType) -> Condition | None:
        return next((each for each in self.conditions if each.type == kind), None)

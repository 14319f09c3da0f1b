"""What the operator reports in an LLMService's status."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmservice_operator.api.conditions import Condition, ConditionType
from llmservice_operator.api.fields import Fields
from llmservice_operator.api.scaling_report import Calibration


class EngineStatus(Fields):
    image: Annotated[str, Field(max_length=512)]
    """Image of the model servers; kept when a new operator brings a new default."""
    version: Annotated[str, Field(max_length=64)]
    """vLLM version that the arguments are written for."""
    default_for: Annotated[str, Field(max_length=32)] | None = None
    """Accelerator type whose default this image was when it was chosen; absent when
    spec.engine.image names the image."""


class AutoscalingStatus(Fields):
    desired_replicas: Annotated[int, Field(ge=0)] | None = None
    """Replicas that the load asks for, within minReplicas and maxReplicas."""
    calibration: Calibration | None = None
    """What the metrics server has learned about this service, kept so that a new one need not start
    anew; written by it alone."""


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
    """Ready (the summary), Progressing, Available and ModelReady."""
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
    autoscaling: AutoscalingStatus | None = None
    """What the autoscaler sees and does; absent while spec.autoscaling is."""

    def condition(self, kind: ConditionType) -> Condition | None:
        return next((each for each in self.conditions if each.type == kind), None)

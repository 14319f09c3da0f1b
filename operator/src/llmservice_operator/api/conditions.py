"""The conditions of an LLMService, declared once; their reasons are in reasons.py.

The status has no phase. Every condition contains the generation of the spec that it describes. The
transition time of a condition changes only when the condition's own status changes.
docs/conditions.md is generated from these declarations.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field

from llmservice_operator.api.fields import Fields, timestamp
from llmservice_operator.api.reasons import Reason

MESSAGE_LIMIT = 4096
"""Maximum length of a message, in characters. The API server refuses a whole status if one of its
messages is longer."""

ConditionStatus = Literal["True", "False", "Unknown"]


class ConditionType(StrEnum):
    """An aspect of a service. The status lists the conditions in this order."""

    READY = (
        "Ready",
        "The summary: True while every desired replica serves the current spec. Its reason, "
        "the REASON column of `kubectl get llm`, is the most useful of all reasons that apply.",
    )
    PROGRESSING = (
        "Progressing",
        "True while pods are being created or replaced; False when the rollout is done, stuck or "
        "rolled back, or when the operator cannot apply the spec.",
    )
    AVAILABLE = (
        "Available",
        "True while at least one replica is ready, of the current spec or of an earlier one.",
    )
    MODEL_READY = (
        "ModelReady",
        "True while a model server of the current spec has the model in memory and is ready; False "
        "while the model servers load the model or cannot load it, and after a rollback; Unknown "
        "in all other cases, such as before a container runs.",
    )

    AUTOSCALING_ACTIVE = (
        "AutoscalingActive",
        "True while the number of replicas follows the load, even at a limit; False while the "
        "number does not change.",
        "the operator, every 15 seconds",
        "while spec.autoscaling is absent",
    )
    METRICS_AVAILABLE = (
        "MetricsAvailable",
        "True while the metrics server knows the load; False while it does not. An unknown load is "
        "not zero, so the number of replicas does not change meanwhile.",
        "the operator, every 15 seconds",
        "while spec.autoscaling is absent and spec.slo sets no limit",
    )
    SLO_MET = (
        "SLOMet",
        "True while the share of the last minute's requests within the SLO is at least the "
        "objective; False while the share is lower; Unknown before the first request. Without new "
        "requests, the status stays the same.",
        "the operator, every 15 seconds",
        "while no latency limit applies: neither one in spec.slo nor a default of autoscaling",
    )
    ROUTER_READY = (
        "RouterReady",
        "True while clients, or Gateways with router.mode InferencePool, reach the router and all "
        "of its pods are ready; False while a pod is not ready, while requests still reach the "
        "replicas without the router, and while the router stops.",
        "the operator, on every pass",
        "while the service has no router",
    )
    ROUTE_READY = (
        "RouteReady",
        "True while every Gateway in spec.route accepts the HTTPRoute and finds its backend; False "
        "while one of them does not, or has not reported yet, and while the cluster lacks the "
        "Gateway API.",
        "the operator, on every pass",
        "while spec.route is absent",
    )

    meaning: str
    """Meaning of the condition's statuses, in Markdown."""
    set_by: str
    """Process that sets the condition, and the time at which it does."""
    absent: str
    """Case in which the status does not contain the condition."""

    def __new__(
        cls,
        word: str,
        meaning: str,
        set_by: str = "the operator, on every pass",
        absent: str = "until the operator's first pass",
    ) -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning, member.set_by, member.absent = meaning, set_by, absent
        return member


@dataclass(frozen=True)
class ConditionUpdate:
    """A condition as one pass computes it. `Condition.following` adds the transition time."""

    type: ConditionType
    status: ConditionStatus
    reason: Reason
    message: str


class Condition(Fields):
    type: Annotated[str, Field(max_length=63)]
    """Aspect that this condition is about, such as Ready."""
    status: ConditionStatus
    """True, False or Unknown."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """metadata.generation that this condition describes."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """Time of the last change of the status."""
    reason: Annotated[str, Field(max_length=63)]
    """Cause of the status, as one CamelCase word."""
    message: Annotated[str, Field(max_length=MESSAGE_LIMIT)] = ""
    """Cause of the status in sentences, with what to change if there is a problem."""

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
        """Return the condition that follows `previous`.

        The transition time changes only if the status differs from the previous one.
        """
        changed_at = timestamp(now)
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

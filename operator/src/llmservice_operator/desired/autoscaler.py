"""Common parts of an HPA and KEDA's ScaledObject, which both scale the replicas with the load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from llmservice_operator.api import Manifest
from llmservice_operator.api.autoscaling import (
    Autoscaling,
    ScalingMode,
    ScalingProvider,
)
from llmservice_operator.api.spec import LLMService
from llmservice_operator.scaling.cold_start import ColdStarts
from llmservice_operator.scaling.hpa import ScalingRules
from llmservice_operator.scaling.recommend import behavior_for
from llmservice_operator.scaling.scale_down import scale_down_window

DEFAULT_WINDOW_SECONDS: Final = round(scale_down_window(ColdStarts().estimate, is_bursty=False))
"""Scale-down window in seconds before any cold start was measured."""


@dataclass(frozen=True)
class Autoscaler:
    """The provider that scales the service, and the settings of its HPA or ScaledObject that do not
    follow from the spec.
    """

    provider: ScalingProvider | None = None
    """Provider of the autoscaler. External uses an HPA. KEDA uses a ScaledObject, but not while the
    service is suspended or idle. Direct and None use no object."""
    window_seconds: int = DEFAULT_WINDOW_SECONDS
    """Scale-down stabilization window in seconds."""
    with_tolerance: bool = True
    """True if the API server stores the tolerance of an HPA. If the API server drops that field, a
    load within 10 % of the target does not change the number of replicas."""
    is_idle: bool = False
    """Whether the operator alone sets the number of replicas, because the service has none or is
    about to have none."""
    scheduled_replicas: int = 0
    """Minimum number of replicas in the present window of the schedule; 0 outside of all
    windows."""

    def fewest_running(self, autoscaling: Autoscaling) -> int:
        """Return the minimum number of replicas now, while the service is not idle."""
        return max(autoscaling.fewest_running, self.scheduled_replicas)

    @classmethod
    def of_spec(cls, service: LLMService) -> Self:
        """Return the autoscaler that the spec requests. For Auto, this is External, the first
        choice of Auto.
        """
        autoscaling = service.spec.autoscaling
        if autoscaling is None or autoscaling.mode is not ScalingMode.ACTIVE:
            return cls()
        is_auto = autoscaling.provider is ScalingProvider.AUTO
        return cls(ScalingProvider.EXTERNAL if is_auto else autoscaling.provider)


def behavior_of(live: Manifest) -> Mapping[str, Any]:
    """Return the behavior in a live HPA or ScaledObject; empty if there is none."""
    spec = live["spec"]
    if live["kind"] == "ScaledObject":
        spec = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {})
    behavior: Mapping[str, Any] = spec.get("behavior", {})
    return behavior


def keeps_tolerance(live: Manifest | None) -> bool:
    """Return whether to send the tolerance. It is not sent if the API server dropped it from the
    live HPA.

    A ScaledObject never contains the tolerance, so the result for a ScaledObject is True.
    """
    if live is None or live["kind"] == "ScaledObject":
        return True
    return "tolerance" in behavior_of(live).get("scaleUp", {})


def build_behavior(
    autoscaling: Autoscaling, autoscaler: Autoscaler, *, with_tolerance: bool
) -> dict[str, Any]:
    """Return the behavior of an HPA. KEDA copies it to the HPA that it creates."""
    behavior = behavior_for(autoscaling.max_replicas, autoscaler.window_seconds)
    return {
        "scaleUp": _rules(behavior.scale_up, with_tolerance=with_tolerance),
        "scaleDown": _rules(behavior.scale_down, with_tolerance=with_tolerance),
    }


def _rules(rules: ScalingRules, *, with_tolerance: bool) -> dict[str, Any]:
    written: dict[str, Any] = {
        "stabilizationWindowSeconds": round(rules.stabilization_window_seconds),
        "selectPolicy": "Max",
        "policies": [
            {
                "type": policy.type.value,
                "value": policy.value,
                "periodSeconds": round(policy.period_seconds),
            }
            for policy in rules.policies
        ],
    }
    if with_tolerance:
        written["tolerance"] = f"{rules.tolerance:g}"
    return written

"""The object that changes the replicas with the load: a HorizontalPodAutoscaler or KEDA's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.autoscaling import (
    Autoscaling,
    ScalingMode,
    ScalingProvider,
)
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.manifest import build_metadata
from llmservice_operator.scaling.cold_start import ColdStarts
from llmservice_operator.scaling.hpa import ScalingRules
from llmservice_operator.scaling.recommend import behavior_for
from llmservice_operator.scaling.scale_down import scale_down_window
from llmservice_operator.settings import OperatorSettings

DEFAULT_WINDOW_SECONDS: Final = round(scale_down_window(ColdStarts().estimate, is_bursty=False))
"""How long a scale-down looks back before any cold start was measured."""

KEDA_POLLING_SECONDS: Final = 5


KEDA_FAILURES_BEFORE_FALLBACK: Final = 3


@dataclass(frozen=True)
class Autoscaler:
    """Which object scales the service, and what was learned about it."""

    provider: ScalingProvider | None = None
    """External and KEDA have an object, KEDA's only while the service is not suspended; Direct and
    None, for nobody, have none."""
    window_seconds: int = DEFAULT_WINDOW_SECONDS
    """How long a scale-down looks back."""
    with_tolerance: bool = True
    """Whether the API server keeps the field; with one that drops it, a load within 10 % of the
    target changes nothing."""

    @classmethod
    def wished(cls, service: LLMService) -> Self:
        """Return what the spec asks for, Auto being what it is where nothing stands against it."""
        autoscaling = service.spec.autoscaling
        if autoscaling is None or autoscaling.mode is not ScalingMode.ACTIVE:
            return cls()
        is_auto = autoscaling.provider is ScalingProvider.AUTO
        return cls(ScalingProvider.EXTERNAL if is_auto else autoscaling.provider)


def behavior_of(live: Manifest) -> Mapping[str, Any]:
    """Return the HPA's behavior that a live HPA or ScaledObject holds; empty when there is none."""
    spec = live["spec"]
    if live["kind"] == "ScaledObject":
        spec = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {})
    behavior: Mapping[str, Any] = spec.get("behavior", {})
    return behavior


def keeps_tolerance(live: Manifest | None) -> bool:
    """Return whether to send the tolerance, given the live HPA: not where it was dropped before.

    A ScaledObject, which never has it, does not tell.
    """
    if live is None or live["kind"] == "ScaledObject":
        return True
    return "tolerance" in behavior_of(live).get("scaleUp", {})


def without_tolerance(manifest: Manifest) -> Manifest:
    """Return an HPA for an API server older than 1.33, which refuses the field instead."""
    spec = manifest["spec"]
    behavior = {
        direction: {key: value for key, value in rules.items() if key != "tolerance"}
        for direction, rules in spec["behavior"].items()
    }
    return {**manifest, "spec": {**spec, "behavior": behavior}}


def build_autoscaler(
    service: LLMService, settings: OperatorSettings, autoscaler: Autoscaler
) -> list[Manifest]:
    """Build the object of the autoscaler, if it has one."""
    autoscaling = service.spec.autoscaling
    if autoscaling is None:
        return []
    match autoscaler.provider:
        case ScalingProvider.EXTERNAL:
            return [_build_horizontal_pod_autoscaler(service, autoscaling, autoscaler)]
        # KEDA lifts a suspended service from 0 to its minimum; an HPA leaves 0 alone.
        case ScalingProvider.KEDA if not service.spec.suspend:
            return [_build_scaled_object(service, autoscaling, autoscaler, settings)]
        case _:
            return []


def _build_horizontal_pod_autoscaler(
    service: LLMService, autoscaling: Autoscaling, autoscaler: Autoscaler
) -> Manifest:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": build_metadata(service, names.autoscaler(service)),
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": names.deployment(service),
            },
            "minReplicas": autoscaling.min_replicas,
            "maxReplicas": autoscaling.max_replicas,
            "metrics": [
                {
                    "type": "External",
                    "external": {
                        "metric": {
                            "name": autoscaling.metric.external_name,
                            "selector": {"matchLabels": {names.METRIC_SERVICE_LABEL: service.name}},
                        },
                        # Of a total, so that pods which are still starting change nothing.
                        "target": {
                            "type": "AverageValue",
                            "averageValue": str(autoscaling.target),
                        },
                    },
                }
            ],
            "behavior": _behavior(autoscaling, autoscaler),
        },
    }


def _build_scaled_object(
    service: LLMService,
    autoscaling: Autoscaling,
    autoscaler: Autoscaler,
    settings: OperatorSettings,
) -> Manifest:
    server = (settings.metrics_server_url or "").rstrip("/")
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": build_metadata(service, names.autoscaler(service)),
        "spec": {
            "scaleTargetRef": {"name": names.deployment(service)},
            "minReplicaCount": autoscaling.min_replicas,
            "maxReplicaCount": autoscaling.max_replicas,
            "pollingInterval": KEDA_POLLING_SECONDS,
            # Unknown is never zero: without an answer the replicas stay as they are.
            "fallback": {
                "failureThreshold": KEDA_FAILURES_BEFORE_FALLBACK,
                "replicas": autoscaling.min_replicas,
                "behavior": "currentReplicasIfHigher",
            },
            "advanced": {
                # Whether this KEDA knows the tolerance cannot be seen from what it keeps.
                "horizontalPodAutoscalerConfig": {
                    "behavior": _behavior(autoscaling, replace(autoscaler, with_tolerance=False))
                }
            },
            "triggers": [
                {
                    "type": "metrics-api",
                    "metricType": "AverageValue",
                    "metadata": {
                        "url": f"{server}{names.load_report_path(service.namespace, service.name)}",
                        "valueLocation": autoscaling.metric.json_field,
                        "targetValue": str(autoscaling.target),
                    },
                }
            ],
        },
    }


def _behavior(autoscaling: Autoscaling, autoscaler: Autoscaler) -> dict[str, Any]:
    behavior = behavior_for(autoscaling.max_replicas, autoscaler.window_seconds)
    tolerance = autoscaler.with_tolerance
    return {
        "scaleUp": _rules(behavior.scale_up, with_tolerance=tolerance),
        "scaleDown": _rules(behavior.scale_down, with_tolerance=tolerance),
    }


def _rules(rules: ScalingRules, *, with_tolerance: bool) -> dict[str, Any]:
    written: dict[str, Any] = {
        "stabilizationWindowSeconds": round(rules.stabilization_window_seconds),
        "selectPolicy": rules.select.value,
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

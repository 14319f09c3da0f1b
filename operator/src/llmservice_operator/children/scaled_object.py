"""KEDA's ScaledObject, which scales a service by the metrics server's load report."""

from __future__ import annotations

from typing import Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.autoscaling import ScalingProvider
from llmservice_operator.children.child import Child, Context, Grant
from llmservice_operator.desired.autoscaler import build_behavior
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.kinds import SCALED_OBJECTS
from llmservice_operator.workload import workload_of

POLLING_SECONDS: Final = 5
FAILURES_BEFORE_FALLBACK: Final = 3


def _body(context: Context) -> Manifest | None:
    service, autoscaler = context.service, context.autoscaler
    autoscaling = service.spec.autoscaling
    if autoscaling is None or autoscaler.provider is not ScalingProvider.KEDA:
        return None
    if service.spec.suspend or autoscaler.is_idle:
        # KEDA would scale such a service from 0 replicas to its minimum. An HPA does not change 0
        # replicas.
        return None
    kind, _, name = (context.settings.trigger_authentication or "").partition("/")
    sent = {"authenticationRef": {"kind": kind, "name": name}} if name else {}
    server = (context.settings.metrics_server_url or "").rstrip("/")
    return {
        "spec": {
            "scaleTargetRef": workload_of(service).scale_reference(service),
            "minReplicaCount": autoscaler.fewest_running(autoscaling),
            "maxReplicaCount": autoscaling.max_replicas,
            "pollingInterval": POLLING_SECONDS,
            # An unknown load is not zero load. Without a response of the metrics server, KEDA
            # therefore keeps the number of replicas, or raises it to the minimum.
            "fallback": {
                "failureThreshold": FAILURES_BEFORE_FALLBACK,
                "replicas": autoscaler.fewest_running(autoscaling),
                "behavior": "currentReplicasIfHigher",
            },
            "advanced": {
                # The tolerance is not sent, because the stored ScaledObject does not show whether
                # this version of KEDA supports it.
                "horizontalPodAutoscalerConfig": {
                    "behavior": build_behavior(autoscaling, autoscaler, with_tolerance=False)
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
                        **({"authMode": "bearer"} if name else {}),
                    },
                    **sent,
                }
            ],
        },
    }


def _refuse_old_keda(_: Manifest, refusal: str) -> Manifest | None:
    if ".fallback.behavior" in refusal:
        raise InvalidSpec(
            "needs KEDA 2.17 or newer: upgrade KEDA, or choose Direct",
            "spec.autoscaling.provider",
        )
    return None


CHILD: Final = Child(
    kind=SCALED_OBJECTS,
    body=_body,
    name=names.autoscaler,
    is_pruned=True,
    is_optional_api=True,
    grant=Grant("keda.enabled", lambda settings: settings.keda),
    substitute=_refuse_old_keda,
)

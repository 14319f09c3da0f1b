"""The HorizontalPodAutoscaler, which scales by the metrics server's external metric."""

from __future__ import annotations

from typing import Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.autoscaling import ScalingProvider
from llmservice_operator.children.child import Child, Context
from llmservice_operator.desired.autoscaler import build_behavior
from llmservice_operator.kinds import AUTOSCALERS
from llmservice_operator.workload import workload_of


def _body(context: Context) -> Manifest | None:
    service, autoscaler = context.service, context.autoscaler
    autoscaling = service.spec.autoscaling
    if autoscaling is None or autoscaler.provider is not ScalingProvider.EXTERNAL:
        return None
    return {
        "spec": {
            "scaleTargetRef": workload_of(service).scale_reference(service),
            # An HPA does not change a workload with 0 replicas. The operator starts it again.
            "minReplicas": autoscaler.fewest_running(autoscaling),
            "maxReplicas": autoscaling.max_replicas,
            "metrics": [
                {
                    "type": "External",
                    "external": {
                        "metric": {
                            "name": autoscaling.metric.external_name,
                            "selector": {"matchLabels": {names.METRIC_SERVICE_LABEL: service.name}},
                        },
                        # The metric is the load of the whole service, and its target is per
                        # replica. Pods that are still starting therefore do not change the result.
                        "target": {
                            "type": "AverageValue",
                            "averageValue": str(autoscaling.target),
                        },
                    },
                }
            ],
            "behavior": build_behavior(
                autoscaling, autoscaler, with_tolerance=autoscaler.with_tolerance
            ),
        },
    }


def _without_tolerance(manifest: Manifest, refusal: str) -> Manifest | None:
    """Return the HPA without `tolerance`, which an API server older than 1.33 refuses.

    Returns None if the API server refuses the HPA for another reason.
    """
    if ".tolerance" not in refusal:
        return None
    spec = manifest["spec"]
    behavior = {
        direction: {key: value for key, value in rules.items() if key != "tolerance"}
        for direction, rules in spec["behavior"].items()
    }
    return {**manifest, "spec": {**spec, "behavior": behavior}}


CHILD: Final = Child(
    kind=AUTOSCALERS,
    body=_body,
    name=names.autoscaler,
    is_pruned=True,
    substitute=_without_tolerance,
)

"""How many of a service's pods a node drain may take at a time."""

from __future__ import annotations

from typing import Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.fields import as_int_or_string
from llmservice_operator.api.lifecycle import PodDisruptionBudget
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.manifest import build_metadata

DEFAULT_MAX_UNAVAILABLE: Final = "1"
"""Not a least number of ready pods: with one replica that would hold up every drain for ever."""


def build_pod_disruption_budget(service: LLMService) -> Manifest:
    """Build the budget; one that a drain cannot meet is refused with the spec."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": build_metadata(service, names.pod_disruption_budget(service)),
        "spec": {
            **_allowance(service.spec.pod_disruption_budget),
            # A replica that is not ready anyway, such as one that crashes, is never protected.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.selector(service)},
        },
    }


def _allowance(budget: PodDisruptionBudget) -> dict[str, int | str]:
    if budget.min_available is not None:
        return {"minAvailable": as_int_or_string(budget.min_available)}
    return {"maxUnavailable": as_int_or_string(budget.max_unavailable or DEFAULT_MAX_UNAVAILABLE)}

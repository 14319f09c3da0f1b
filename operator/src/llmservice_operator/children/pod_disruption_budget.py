"""Limits how many of a service's pods a node drain may evict at a time."""

from __future__ import annotations

from typing import Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.fields import as_int_or_string
from llmservice_operator.api.lifecycle import PodDisruptionBudget
from llmservice_operator.children.child import Child, Context
from llmservice_operator.kinds import POD_DISRUPTION_BUDGETS

DEFAULT_MAX_UNAVAILABLE: Final = "1"
"""Default limit. With a minimum number of available pods instead, a service with one replica would
block every node drain."""


def _body(context: Context) -> Manifest:
    """Return the budget. Validation of the spec refuses a budget that blocks every drain."""
    service = context.service
    return {
        "spec": {
            **_allowance(service.spec.pod_disruption_budget),
            # A replica that is not ready, such as one that crashes, may always be evicted.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.selector(service)},
        },
    }


def _allowance(budget: PodDisruptionBudget) -> dict[str, int | str]:
    if budget.min_available is not None:
        return {"minAvailable": as_int_or_string(budget.min_available)}
    return {"maxUnavailable": as_int_or_string(budget.max_unavailable or DEFAULT_MAX_UNAVAILABLE)}


CHILD: Final = Child(kind=POD_DISRUPTION_BUDGETS, body=_body)

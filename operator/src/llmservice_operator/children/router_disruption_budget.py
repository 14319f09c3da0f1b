"""Limits how many router pods of a service a node drain may evict at a time."""

from __future__ import annotations

from typing import Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.children.child import Child, Context
from llmservice_operator.kinds import POD_DISRUPTION_BUDGETS


def _body(context: Context) -> Manifest | None:
    if not context.router.exists:
        return None
    return {
        "spec": {
            # With a minimum instead, a single router pod would block every node drain.
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.router_selector(context.service)},
        }
    }


CHILD: Final = Child(kind=POD_DISRUPTION_BUDGETS, body=_body, name=names.router, is_pruned=True)

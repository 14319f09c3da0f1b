"""spec.termination and spec.podDisruptionBudget: how a replica ends, and how many at a time."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from llmservice_operator.api.fields import Fields, Portion, Rule


class Termination(Fields):
    pre_stop_seconds: Annotated[int, Field(ge=0, le=300)] = 5
    """Seconds for which a replica that was told to stop still takes requests, until every proxy has
    learned of it."""
    drain_timeout_seconds: Annotated[int, Field(ge=0, le=86_400)] = 600
    """Longest time in seconds that it may then take to finish the answers under way; what is left
    is cut with an error. A node drain waits as long."""


_EITHER = Rule(
    "maxUnavailable",
    cel="!has(self.minAvailable) || !has(self.maxUnavailable)",
    message="says the same as minAvailable in another way: remove one of them",
    holds=lambda budget: budget.min_available is None or budget.max_unavailable is None,
)
_LETS_ONE_GO = Rule(
    "maxUnavailable",
    cel="!has(self.maxUnavailable) || !(string(self.maxUnavailable) in ['0', '0%'])",
    message="must be at least 1, or no node with a replica could ever be drained",
    holds=lambda budget: budget.max_unavailable not in ("0", "0%"),
)


class PodDisruptionBudget(Fields):
    min_available: Portion | None = None
    """Replicas that a node drain must leave ready, such as 2 or 50%."""
    max_unavailable: Portion | None = None
    """Replicas that node drains may end at a time, such as 1 or 25%. Default: 1, so that a single
    replica too gives way to a drain, after its answers are finished."""

    rules: ClassVar = (_EITHER, _LETS_ONE_GO)

    def lets_a_drain_finish(self, replicas: int) -> bool:
        """Return whether so many ready replicas leave one that may be evicted."""
        if self.min_available is None or replicas == 0:
            return True
        if self.min_available.endswith("%"):
            percent = int(self.min_available.removesuffix("%"))
            # The percentage of the replicas is rounded up.
            return percent * replicas <= 100 * (replicas - 1)
        return int(self.min_available) < replicas

"""How replicas come and go: spec.startup, termination, podDisruptionBudget, rolloutStrategy."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from llmservice_operator.api.fields import Fields, Portion, Rule


class Startup(Fields):
    # A judgement: 140 GB (70B parameters in bf16) at 1 Gbit/s are 19 minutes, plus loading and
    # compiling.
    timeout_seconds: Annotated[int, Field(ge=60, le=86_400)] = 1800
    """Longest time in seconds that a replica may take from its container's start until it serves,
    to download and load the model and to compile. Then the container is restarted; what it has
    downloaded it keeps. Raise it for a large model or a slow network."""


class Termination(Fields):
    pre_stop_seconds: Annotated[int, Field(ge=0, le=300)] = 5
    """Seconds for which a replica that was told to stop still takes requests, until every proxy has
    learned of it."""
    drain_timeout_seconds: Annotated[int, Field(ge=0, le=86_400)] = 600
    """Longest time in seconds that it may then take to finish the answers under way; what is left
    is cut with an error. No request takes longer than serving.requestTimeoutSeconds, so more than
    that has no effect. A node drain waits as long, but some node autoscalers do not: the Cluster
    Autoscaler ends pods after 600 seconds, less than the default with preStopSeconds and 15 seconds
    to end. Raise its --max-graceful-termination-sec to 620, or lower this to 580."""


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


class RolloutType(StrEnum):
    AUTO = "Auto"
    ROLLING_UPDATE = "RollingUpdate"
    RECREATE = "Recreate"


def _rolling_update_only(field: str, attribute: str) -> Rule:
    return Rule(
        field,
        cel=f"self.type == 'RollingUpdate' || !has(self.{field})",
        message="belongs to type RollingUpdate only: remove it or choose RollingUpdate",
        holds=lambda strategy: (
            strategy.type is RolloutType.ROLLING_UPDATE or getattr(strategy, attribute) is None
        ),
    )


_NONE = ("0", "0%")


class RolloutStrategy(Fields):
    type: RolloutType = RolloutType.AUTO
    """How pods are replaced after a change. Auto: a new replica is ready before an old one ends;
    when none finds a free accelerator for 60 seconds, each old one ends before its successor
    starts, which with one replica means that nothing answers meanwhile. RollingUpdate: by maxSurge
    and maxUnavailable, waiting for an accelerator as long as it takes. Recreate: all old ones end
    before any new one starts."""
    max_surge: Portion | None = None
    """For RollingUpdate: replicas that may run beyond those asked for, such as 1 or 25%.
    Default: 1."""
    max_unavailable: Portion | None = None
    """For RollingUpdate: replicas that may be missing meanwhile, such as 1 or 25%. Default: 0."""
    progress_deadline_seconds: Annotated[int, Field(ge=60, le=86_400)] | None = None
    """Seconds without progress after which a rollout is reported as stuck; it goes on all the same.
    Default: startup.timeoutSeconds and 1200 more, in which a node is found and the image
    pulled."""

    rules: ClassVar = (
        _rolling_update_only("maxSurge", "max_surge"),
        _rolling_update_only("maxUnavailable", "max_unavailable"),
        Rule(
            "maxUnavailable",
            cel="!has(self.maxSurge) || !(string(self.maxSurge) in ['0', '0%']) || "
            "(has(self.maxUnavailable) && !(string(self.maxUnavailable) in ['0', '0%']))",
            message="must be at least 1 when maxSurge is 0, or no replica could ever be replaced",
            holds=lambda strategy: (
                strategy.max_surge not in _NONE or strategy.max_unavailable not in (None, *_NONE)
            ),
        ),
    )

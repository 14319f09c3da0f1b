"""Start, replacement and end of replicas: spec.startup, smokeTest, termination,
podDisruptionBudget, rolloutStrategy.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Final

import re2
from pydantic import Field

from llmservice_operator.api.fields import Fields, Portion, Rule, ValueRule


class Startup(Fields):
    # The value is an estimate: 140 GB (70B parameters in bf16) at 1 Gbit/s take 19 minutes, plus
    # loading and compiling.
    timeout_seconds: Annotated[int, Field(ge=60, le=86_400)] = 1800
    """Maximum time in seconds from the start of the container until the replica is ready: download,
    loading and compilation. After that the container restarts and keeps the files that it has
    downloaded. Raise it for a large model or a slow network."""


def _is_re2(pattern: str) -> bool:
    quiet = re2.Options()
    quiet.log_errors = False
    try:
        re2.compile(pattern, quiet)
    except re2.error:
        return False
    return True


SMOKE_TEST_SECONDS: Final = 60
"""Default time limit of the smoke test. The model server has the same one. It is an estimate: the
slowest models on a CPU generate an answer of 32 tokens in half of the time."""


class SmokeTest(Fields):
    enabled: bool = True
    """Whether a new replica sends itself a request before it is ready. If the answer is wrong, the
    replica restarts, the rollout stops, and the old replicas serve on. Without `expect`, the answer
    is right if its log-probabilities, or the numbers of its vector, are finite."""
    prompt: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Text that the model continues with at most 32 tokens, or for which it computes a vector.
    Default: a text of the model server. A model that refuses that one is not tested."""
    expect: (
        Annotated[
            str,
            Field(min_length=1, max_length=256),
            ValueRule(
                # The API server refuses a pattern that it cannot read, and adds the reason.
                cel="''.matches(self) in [true, false]",
                message="must be a regular expression in the syntax of RE2",
                holds=_is_re2,
            ),
        ]
        | None
    ) = None
    """Regular expression in the syntax of RE2 that must occur in the answer, such as `(?i)paris`.
    For models that generate text. Default: any text is right."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = SMOKE_TEST_SECONDS
    """Maximum time in seconds until the answer is complete. It is a part of
    startup.timeoutSeconds."""


class Termination(Fields):
    pre_stop_seconds: Annotated[int, Field(ge=0, le=300)] = 5
    """Time in seconds that a terminating replica keeps accepting requests, until every proxy has
    stopped sending them."""
    drain_timeout_seconds: Annotated[int, Field(ge=0, le=86_400)] = 600
    """Maximum time in seconds after preStopSeconds to finish the requests in progress; requests
    that are not finished by then end with an error. A value above serving.requestTimeoutSeconds has
    no effect, unless serving.requestTimeoutSeconds is 0. A node drain waits as long, but some node
    autoscalers do not: the Cluster Autoscaler ends pods after 600 seconds by default, while the
    defaults here need up to 620. Raise its --max-graceful-termination-sec to 620, or lower this to
    580."""


_EITHER = Rule(
    "maxUnavailable",
    cel="!has(self.minAvailable) || !has(self.maxUnavailable)",
    message="cannot be combined with minAvailable: remove one of the two",
    holds=lambda budget: budget.min_available is None or budget.max_unavailable is None,
)
_LETS_ONE_GO = Rule(
    "maxUnavailable",
    cel="!has(self.maxUnavailable) || !(string(self.maxUnavailable) in ['0', '0%'])",
    message="must be at least 1, or nodes that run a replica can never be drained",
    holds=lambda budget: budget.max_unavailable not in ("0", "0%"),
)


class PodDisruptionBudget(Fields):
    min_available: Portion | None = None
    """Number of replicas that must stay available during a node drain, such as 2 or 50%."""
    max_unavailable: Portion | None = None
    """Number of replicas that may be unavailable during a node drain, such as 1 or 25%. Default: 1,
    so a drain can evict even a single replica; it finishes its requests first."""

    rules: ClassVar = (_EITHER, _LETS_ONE_GO)

    def lets_a_drain_finish(self, replicas: int) -> bool:
        """Return whether one of `replicas` ready replicas may be evicted."""
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
        message="requires type RollingUpdate: remove it, or choose that type",
        holds=lambda strategy: (
            strategy.type is RolloutType.ROLLING_UPDATE or getattr(strategy, attribute) is None
        ),
    )


_NONE = ("0", "0%")


class RolloutStrategy(Fields):
    type: RolloutType = RolloutType.AUTO
    """Order in which a rollout replaces pods. Auto: a new replica becomes ready before an old one
    ends. If a new replica waits 60 seconds for an accelerator, a volume or quota that an old
    replica holds, each old replica ends before its successor starts. With a single replica, the
    service is then unavailable until the successor is ready. With a model cache whose claim has
    only the access mode ReadWriteOnce, old replicas end first from the beginning. RollingUpdate:
    maxSurge and maxUnavailable decide, however long a new replica waits. Recreate: all old replicas
    end before a new one starts."""
    max_surge: Portion | None = None
    """For RollingUpdate: number of replicas that may run above the desired number, such as 1 or
    25%. Default: 1."""
    max_unavailable: Portion | None = None
    """For RollingUpdate: number of replicas that may be unavailable during the rollout, such as 1
    or 25%. Default: 0."""
    progress_deadline_seconds: Annotated[int, Field(ge=60, le=86_400)] | None = None
    """Time in seconds without progress after which a rollout counts as stuck. The status reports
    it, and the rollout continues. Default: startup.timeoutSeconds + 1200; the 1200 seconds are for
    provisioning a node and pulling the image."""

    auto_rollback: bool = False
    """Whether the pods of the last complete rollout return when a later rollout fails: a new
    replica cannot start, or ends with an error, and is not ready after 30 seconds; or the rollout
    is stuck. The status then says RolledBack, until a change of the spec changes the pods. All
    other objects follow the spec. With false, the rollout stops and the old replicas serve on."""

    rules: ClassVar = (
        _rolling_update_only("maxSurge", "max_surge"),
        _rolling_update_only("maxUnavailable", "max_unavailable"),
        Rule(
            "maxUnavailable",
            cel="!has(self.maxSurge) || !(string(self.maxSurge) in ['0', '0%']) || "
            "(has(self.maxUnavailable) && !(string(self.maxUnavailable) in ['0', '0%']))",
            message="must be at least 1 when maxSurge is 0, or no replica can ever be replaced",
            holds=lambda strategy: (
                strategy.max_surge not in _NONE or strategy.max_unavailable not in (None, *_NONE)
            ),
        ),
    )

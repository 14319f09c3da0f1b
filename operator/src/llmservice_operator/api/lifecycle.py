"""Startup, replacement and shutdown of replicas: spec.startup, smokeTest, termination,
podDisruptionBudget, rolloutStrategy.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Final

import re2
from pydantic import Field

from llmservice_operator.api.fields import Fields, Portion, Rule, ValueRule


class Startup(Fields):
    # The default is an estimate: 140 GB (70B parameters in bf16) at 1 Gbit/s take 19 minutes, plus
    # loading and compiling.
    timeout_seconds: Annotated[int, Field(ge=60, le=86_400)] = 1800
    """Maximum time in seconds from the start of the container until the replica is ready. This time
    includes the download, loading, compilation and the smoke test, and with a shared cache the wait
    for the replica that downloads the model. A container that takes longer restarts, and keeps the
    files that it has downloaded. Raise the value for a large model or a slow network."""


def _is_re2(pattern: str) -> bool:
    quiet = re2.Options()
    quiet.log_errors = False
    try:
        re2.compile(pattern, quiet)
    except re2.error:
        return False
    return True


SMOKE_TEST_SECONDS: Final = 60
"""Default time limit of the smoke test, in seconds. The model server has the same default. The
value is an estimate: the slowest models on a CPU need half of this time for an answer of 32
tokens."""


class SmokeTest(Fields):
    enabled: bool = True
    """Whether a new replica sends itself a request before it is ready. If the answer is wrong or
    late, the replica restarts, the rollout stops, and the old replicas continue to serve. Without
    `expect`, the answer is right if all log-probabilities of its tokens, or all numbers of its
    vector, are finite. A model is not tested if it generates no text, computes no vectors and
    transcribes no speech."""
    prompt: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Text that the model continues with at most 32 tokens, or converts to a vector. Default: a
    text of the model server; if the model refuses this text and `expect` is unset, the model is not
    tested."""
    expect: (
        Annotated[
            str,
            Field(min_length=1, max_length=256),
            ValueRule(
                # The API server refuses a pattern that it cannot parse, and adds the reason.
                cel="''.matches(self) in [true, false]",
                message="must be a regular expression in the syntax of RE2",
                holds=_is_re2,
            ),
        ]
        | None
    ) = None
    """Regular expression in the syntax of RE2 that must match a part of the answer, such as
    `(?i)paris`. It requires a model that generates text. Default: any text is right."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = SMOKE_TEST_SECONDS
    """Maximum time in seconds until the answer is complete. It is a part of
    startup.timeoutSeconds."""


class Termination(Fields):
    pre_stop_seconds: Annotated[int, Field(ge=0, le=300)] = 5
    """Time in seconds for which a terminating replica still accepts requests, so that every proxy
    has time to stop sending it new ones."""
    drain_timeout_seconds: Annotated[int, Field(ge=0, le=86_400)] = 600
    """Maximum time in seconds after preStopSeconds to finish the requests in progress; requests
    that are not finished by then end with an error. If serving.requestTimeoutSeconds is set and not
    0, a value above that limit has no effect. A node drain waits for this time, but some node
    autoscalers do not: by default, the Cluster Autoscaler terminates pods after 600 seconds, while
    the defaults here need up to 620. Raise its --max-graceful-termination-sec to 620, or lower
    drainTimeoutSeconds to 580."""


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
    """Number of replicas that may be unavailable during a node drain, such as 1 or 25%. Default: 1
    unless minAvailable is set. A drain can then evict even the only replica, which finishes its
    requests first."""

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
    terminates. If a new replica waits 60 seconds for an accelerator, a volume or quota that an old
    replica uses, each old replica terminates before its successor starts. With a single replica,
    the service is then unavailable until the successor is ready. If the operator creates the claim
    of the model cache and model.cache.accessModes contains only ReadWriteOnce, the rollout does not
    wait: from its beginning, each old replica terminates before its successor starts.
    RollingUpdate: maxSurge and maxUnavailable set the order, however long a new replica waits.
    Recreate: all old replicas terminate before a new one starts."""
    max_surge: Portion | None = None
    """For RollingUpdate: number of replicas that may run above the desired number, such as 1 or
    25%. Default: 1."""
    max_unavailable: Portion | None = None
    """For RollingUpdate: number of replicas that may be unavailable during the rollout, such as 1
    or 25%. Default: 0."""
    progress_deadline_seconds: Annotated[int, Field(ge=60, le=86_400)] | None = None
    """Time in seconds without progress after which a rollout counts as stuck. The status reports a
    stuck rollout, and the rollout continues unless autoRollback is true. Default:
    startup.timeoutSeconds + 1200; the 1200 seconds are for provisioning a node and pulling the
    image."""

    auto_rollback: bool = False
    """Whether the operator restores the pods of the last complete rollout when a later rollout
    fails. A rollout fails if it is stuck. It also fails if a new replica cannot start or exits with
    an error, and is still not ready after 30 seconds. The condition Ready then has the reason
    RolledBack, until a change of the spec changes the pods. All other objects follow the spec.
    With false, the rollout waits for the new replica, and the old replicas continue to serve."""

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

"""Returns to the pods of the last complete rollout when a later rollout fails.

The status records the decision with a digest of the pods that failed. The decision therefore
survives a restart of the operator, and stays in effect until the spec requires other pods.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llmservice_operator.api import Manifest
from llmservice_operator.api.fields import timestamp
from llmservice_operator.api.reason_facts import Rank
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.status import CAUSE_LIMIT, RollbackStatus
from llmservice_operator.desired.manifest import is_controlled_by
from llmservice_operator.workload.observation import Observation
from llmservice_operator.workload.pin import EnginePin, pin_of_annotations
from llmservice_operator.workload.registry import workload_of

PATIENCE_SECONDS: Final = 30.0
"""Time in seconds that a replica with a problem may be unready before the rollout counts as failed.
The value is an estimate. By then, a Secret that a user applies shortly after the service usually
exists, and a failed image pull has been retried."""

_LAST_RANK: Final = Rank.IMAGE
"""Highest rank of a problem that a change of the pods may have caused. Higher ranks mean that the
cluster lacks resources, or that a start takes long."""


@dataclass(frozen=True)
class Restored:
    """Pods of an earlier revision."""

    spec: Mapping[str, Any]
    """Part of the workload's spec from which the pods are made."""
    pin: EnginePin


@dataclass(frozen=True)
class RollbackDecision:
    status: RollbackStatus | None
    """Rollback to record. None while the pods follow the spec."""
    requeue_after_seconds: float | None = None
    """Seconds after which the decision may change without an event. None if it cannot."""


def decide_rollback(
    service: LLMService, seen: Observation, pods: str | None, now: datetime, *, may_begin: bool
) -> RollbackDecision:
    """Decide from the recorded rollback and the observation whether earlier pods return.

    `pods` is the digest of the pods that the spec requires. None if they could not be built.
    Without `may_begin`, no rollback begins, because the observation may be about earlier pods.
    """
    if not service.spec.rollout_strategy.auto_rollback:
        return RollbackDecision(None)
    recorded = service.status.rollback
    if recorded is not None and pods in (None, recorded.failed_pods):
        return RollbackDecision(recorded)
    complete = service.status.complete_revision
    is_incomplete = bool(seen.revision) and seen.revision != complete
    if (
        pods is None
        or not may_begin
        or complete is None
        or not is_incomplete
        or seen.problem is None
    ):
        return RollbackDecision(None)
    if not seen.is_stuck:
        if seen.problem.reason.rank > _LAST_RANK or seen.not_ready_since is None:
            return RollbackDecision(None)
        left = PATIENCE_SECONDS - (now - seen.not_ready_since).total_seconds()
        if left > 0:
            return RollbackDecision(None, min(left, PATIENCE_SECONDS))
    return RollbackDecision(
        RollbackStatus(
            time=timestamp(now),
            revision=complete,
            failed_pods=pods,
            reason=seen.problem.reason.value,
            message=seen.problem.message[:CAUSE_LIMIT],
        )
    )


def is_rolled_back(service: LLMService) -> bool:
    """Return whether the status records a rollback that the spec still allows."""
    return service.spec.rollout_strategy.auto_rollback and service.status.rollback is not None


def digest_of(service: LLMService, spec: Mapping[str, Any]) -> str:
    """Return a digest of the pods that a workload of this spec makes."""
    pods = workload_of(service).pods_of(spec)
    return hashlib.sha256(json.dumps(pods, sort_keys=True).encode()).hexdigest()[:16]


def read_restored(service: LLMService, live: Manifest, kept: Manifest | None) -> Restored | None:
    """Return the pods recorded in `kept`, the object of an earlier revision.

    None if there is no such object, if it does not belong to the live workload, or if it records no
    engine pin.
    """
    if kept is None or not is_controlled_by(kept, live["metadata"]["uid"]):
        return None
    workload = workload_of(service)
    image = workload.pinned_image(kept)
    pin = None if image is None else pin_of_annotations(kept, image)
    return None if pin is None else Restored(workload.pods_of_revision(kept), pin)


def without_rollback(service: LLMService) -> LLMService:
    """Return the service without an earlier revision to return to."""
    status = service.status.model_copy(update={"rollback": None, "complete_revision": None})
    return service.model_copy(update={"status": status})

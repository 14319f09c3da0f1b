"""Chooses how a rollout continues: new pods in addition to the old ones, or in their place.

A new pod cannot start while the old pods use all GPUs, the quota or the volume that it needs. A
rollout of type Auto waits for PATIENCE_SECONDS and then lets an old pod end first. The status
records this decision until the rollout ends, so the decision survives a restart of the operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from llmservice_operator.api.fields import timestamp
from llmservice_operator.api.lifecycle import RolloutType
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.status import RolloutStatus
from llmservice_operator.workload.observation import Observation

PATIENCE_SECONDS: Final = 60.0
"""Time in seconds that a new pod waits for a resource before an old pod ends to free it. The value
is an estimate: by then, pods that end without a drain are gone. Type RollingUpdate is for longer
waits, such as for a drain or for a new node."""


@dataclass(frozen=True)
class RolloutDecision:
    status: RolloutStatus | None
    """Record of the decision that each old pod ends before its successor starts. None before this
    decision, after the rollout, and for every type except Auto."""
    requeue_after_seconds: float | None = None
    """Seconds after which the decision may change without an event. None if it cannot."""


def decide_rollout(service: LLMService, seen: Observation, now: datetime) -> RolloutDecision:
    """Decide from the recorded rollout and the observation whether old pods end first."""
    if service.spec.rollout_strategy.type is not RolloutType.AUTO:
        return RolloutDecision(None)
    recorded = service.status.rollout
    if recorded is not None:
        return RolloutDecision(None if seen.is_rolled_out else recorded)
    waits = (
        seen.waits_for_accelerator_since,
        seen.waits_for_volume_since,
        seen.waits_for_quota_since,
    )
    since = min((each for each in waits if each is not None), default=None)
    if since is None or seen.replicas <= seen.updated_replicas:
        # No old pod remains whose end could free the resource.
        return RolloutDecision(None)
    left = PATIENCE_SECONDS - (now - since).total_seconds()
    if left > 0:
        return RolloutDecision(None, min(left, PATIENCE_SECONDS))
    stamp = timestamp(now)
    return RolloutDecision(RolloutStatus(in_place_since=stamp))

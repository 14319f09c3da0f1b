"""How a rollout goes on: new pods beside the old ones, or in their place.

A pod with GPUs cannot be started beside the old ones when no GPU is free. A rollout of type Auto
waits a while for one and then lets an old pod end first. That it does so is kept in the status,
where it outlives the operator, and ends with the rollout.
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
"""How long a new pod waits for an accelerator before an old one gives its own up. A judgement:
scheduled pods that end without a drain have left by then. A longer wait, for a drain or for a node
that is only being made, is what type RollingUpdate is for."""


@dataclass(frozen=True)
class RolloutDecision:
    status: RolloutStatus | None
    """What to record: None while new pods start beside the old ones."""
    requeue_after_seconds: float | None = None
    """When time alone may change the decision; None when only an event can."""


def decide_rollout(service: LLMService, seen: Observation, now: datetime) -> RolloutDecision:
    """Return whether old pods are to end first, by what was recorded and what is seen."""
    if service.spec.rollout_strategy.type is not RolloutType.AUTO:
        return RolloutDecision(None)
    recorded = service.status.rollout
    if recorded is not None:
        return RolloutDecision(None if seen.is_rolled_out else recorded)
    since = seen.waits_for_accelerator_since
    if since is None or seen.replicas <= seen.updated_replicas:
        # Without an old pod there is none that could give its accelerator up.
        return RolloutDecision(None)
    left = PATIENCE_SECONDS - (now - since).total_seconds()
    if left > 0:
        return RolloutDecision(None, min(left, PATIENCE_SECONDS))
    stamp = timestamp(now)
    return RolloutDecision(RolloutStatus(in_place_since=stamp))

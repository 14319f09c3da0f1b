"""The HPA's arithmetic at the HPA's pace, for services that nothing else scales."""

from dataclasses import dataclass

from llmservice_operator.scaling.hpa import Behavior, Bounds, Decision, HpaState, decide

SYNC_SECONDS = 15.0
"""As often as the HPA controller looks."""


@dataclass(frozen=True, slots=True)
class Sync:
    """The newest decision, and when it was taken; seconds on any clock."""

    at: float
    decision: Decision


def sync(
    before: Sync | None,
    behavior: Behavior,
    bounds: Bounds,
    current: int,
    total: float | None,
    target: float,
    now: float,
) -> Sync:
    """Decide anew when it is time, else return the decision of before.

    A `total` of None is unknown, and holds the replicas.
    """
    if before is not None and now - before.at < SYNC_SECONDS:
        return before
    state = HpaState() if before is None else before.decision.state
    return Sync(now, decide(state, behavior, bounds, current, total, target, now))

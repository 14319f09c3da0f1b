"""Scales a service that has no HorizontalPodAutoscaler, by the same arithmetic and at the same
pace.
"""

from dataclasses import dataclass

from llmservice_operator.scaling.hpa import Decision, HpaSpec, HpaState, decide

SYNC_SECONDS = 15.0
"""Period of the HPA controller."""


@dataclass(frozen=True, slots=True)
class Sync:
    """The newest decision and its time, in seconds on any clock."""

    at: float
    decision: Decision


def sync(before: Sync | None, spec: HpaSpec, current: int, total: float | None, now: float) -> Sync:
    """Return a new decision when a sync is due, else the last one.

    A `total` of None is unknown, and holds the replicas.
    """
    if before is not None and now - before.at < SYNC_SECONDS:
        return before
    state = HpaState() if before is None else before.decision.state
    return Sync(now, decide(state, spec, current, total, now))

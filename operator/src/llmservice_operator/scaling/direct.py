"""Scales a service that has no HorizontalPodAutoscaler, with the arithmetic and the period of the
HPA controller.
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
    """Return a new decision if a sync is due, and the last decision otherwise.

    A `total` of None means that the metric is unknown. The decision then keeps the number of
    replicas, limited to the range from `min_replicas` to `max_replicas`. If the
    number is 0, it stays 0.
    """
    if before is not None and now - before.at < SYNC_SECONDS:
        return before
    state = HpaState() if before is None else before.decision.state
    return Sync(now, decide(state, spec, current, total, now))

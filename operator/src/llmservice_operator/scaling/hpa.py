"""The arithmetic of the HorizontalPodAutoscaler (autoscaling/v2), for one External metric.

Used by the direct mode, where nothing else can scale, and by the simulator. Same rules, same
rounding: AverageValue target, tolerance, stabilization windows, policies.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class PolicyType(StrEnum):
    PODS = "Pods"
    PERCENT = "Percent"


class Select(StrEnum):
    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


@dataclass(frozen=True, slots=True)
class ChangePolicy:
    """At most `value` replicas, or percent of them, in any `period_seconds`."""

    type: PolicyType
    value: int
    period_seconds: float


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """How fast replicas may change in one direction."""

    stabilization_window_seconds: float
    policies: tuple[ChangePolicy, ...]
    select: Select = Select.MAX
    tolerance: float = 0.1


DEFAULT_UP = ScalingRules(
    0,
    (ChangePolicy(PolicyType.PODS, 4, 15), ChangePolicy(PolicyType.PERCENT, 100, 15)),
)
DEFAULT_DOWN = ScalingRules(300, (ChangePolicy(PolicyType.PERCENT, 100, 15),))


@dataclass(frozen=True, slots=True)
class Behavior:
    """`spec.behavior` of a HorizontalPodAutoscaler."""

    scale_up: ScalingRules = DEFAULT_UP
    scale_down: ScalingRules = DEFAULT_DOWN


@dataclass(frozen=True, slots=True)
class Bounds:
    min_replicas: int
    max_replicas: int


@dataclass(frozen=True, slots=True)
class At:
    """A number of replicas at a time."""

    at: float
    replicas: int


@dataclass(frozen=True, slots=True)
class HpaState:
    """What earlier syncs leave to later ones."""

    recommendations: tuple[At, ...] = ()
    added: tuple[At, ...] = ()
    removed: tuple[At, ...] = ()


class Cause(StrEnum):
    """What made a decision what it is: the first word of `decisions[].reason` in the status.

    It is no reason of a condition; those are in api/reasons.py.
    """

    DESIRED_WITHIN_RANGE = "DesiredWithinRange"
    WITHIN_TOLERANCE = "WithinTolerance"
    SCALE_DOWN_STABILIZED = "ScaleDownStabilized"
    SCALE_UP_STABILIZED = "ScaleUpStabilized"
    SCALE_UP_LIMITED = "ScaleUpLimited"
    SCALE_DOWN_LIMITED = "ScaleDownLimited"
    TOO_MANY_REPLICAS = "TooManyReplicas"
    TOO_FEW_REPLICAS = "TooFewReplicas"
    METRICS_MISSING = "MetricsMissing"
    SCALED_TO_ZERO = "ScaledToZero"


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas there should be, and what decided."""

    replicas: int
    reason: Cause
    state: HpaState = field(repr=False)


def replicas_for(total: float, target: float, current: int, rules: Behavior) -> int:
    """Replicas that bring the average of `total` to `target`; `current` within the tolerance."""
    if current > 0:
        ratio = total / (target * current)
        within = 1 - rules.scale_down.tolerance <= ratio <= 1 + rules.scale_up.tolerance
        if within:
            return current
    # Kubernetes computes in thousandths; so a rounding error of a float must not add a replica.
    return math.ceil(round(1000 * total / target, 3) / 1000 - 1e-9)


def decide(
    state: HpaState,
    behavior: Behavior,
    bounds: Bounds,
    current: int,
    total: float | None,
    target: float,
    now: float,
) -> Decision:
    """One sync: the replicas for a metric that sums to `total`, None when it is missing."""
    if current == 0 and bounds.min_replicas > 0:
        return Decision(0, Cause.SCALED_TO_ZERO, state)
    if not state.recommendations:
        # A controller that has just started knows no past: what runs is its first recommendation.
        state = HpaState((At(now, current),), state.added, state.removed)
    if current > bounds.max_replicas:
        return _changed(state, now, current, bounds.max_replicas, Cause.TOO_MANY_REPLICAS)
    if current < bounds.min_replicas:
        return _changed(state, now, current, bounds.min_replicas, Cause.TOO_FEW_REPLICAS)
    if total is None:
        return Decision(current, Cause.METRICS_MISSING, state)

    wanted = replicas_for(total, target, current, behavior)
    reason = Cause.DESIRED_WITHIN_RANGE if wanted != current else Cause.WITHIN_TOLERANCE
    stable, state = _stabilize(state, behavior, current, wanted, now)
    if stable != wanted:
        is_down = wanted < stable
        reason = Cause.SCALE_DOWN_STABILIZED if is_down else Cause.SCALE_UP_STABILIZED
    limited, limit_reason = _limit(state, behavior, bounds, current, stable, now)
    return _changed(state, now, current, limited, limit_reason or reason)


def _stabilize(
    state: HpaState, behavior: Behavior, current: int, wanted: int, now: float
) -> tuple[int, HpaState]:
    """Rise to the least, fall to the most of what the windows recommended."""
    up_since = now - behavior.scale_up.stabilization_window_seconds
    down_since = now - behavior.scale_down.stabilization_window_seconds
    least = min([wanted, *(r.replicas for r in state.recommendations if r.at > up_since)])
    most = max([wanted, *(r.replicas for r in state.recommendations if r.at > down_since)])
    kept = tuple(r for r in state.recommendations if r.at > min(up_since, down_since))
    state = HpaState((*kept, At(now, wanted)), state.added, state.removed)
    return min(max(current, least), most), state


def _limit(
    state: HpaState,
    behavior: Behavior,
    bounds: Bounds,
    current: int,
    wanted: int,
    now: float,
) -> tuple[int, Cause | None]:
    """What the policies and bounds let through of the change."""
    if wanted > current:
        allowed = max(current, _furthest(state, behavior.scale_up, current, now, 1))
        highest = min(bounds.max_replicas, allowed)
        if wanted > highest:
            is_bound = highest == bounds.max_replicas
            return highest, Cause.TOO_MANY_REPLICAS if is_bound else Cause.SCALE_UP_LIMITED
    elif wanted < current:
        allowed = min(current, _furthest(state, behavior.scale_down, current, now, -1))
        lowest = max(bounds.min_replicas, allowed)
        if wanted < lowest:
            is_bound = lowest == bounds.min_replicas
            return lowest, Cause.TOO_FEW_REPLICAS if is_bound else Cause.SCALE_DOWN_LIMITED
    return wanted, None


def _furthest(
    state: HpaState, rules: ScalingRules, current: int, now: float, direction: int
) -> int:
    """How far the policies let the replicas go; `direction` is 1 for up, -1 for down."""
    if rules.select is Select.DISABLED or not rules.policies:
        return current
    proposals = []
    for policy in rules.policies:
        start = current - _net_change(state, policy.period_seconds, now)
        if policy.type is PolicyType.PODS:
            proposals.append(start + direction * policy.value)
        elif direction > 0:
            proposals.append(math.ceil(start * (1 + policy.value / 100)))
        else:
            proposals.append(math.trunc(start * (1 - policy.value / 100)))
    widest: Callable[[list[int]], int] = max if direction > 0 else min
    narrowest: Callable[[list[int]], int] = min if direction > 0 else max
    return widest(proposals) if rules.select is Select.MAX else narrowest(proposals)


def _net_change(state: HpaState, period_seconds: float, now: float) -> int:
    since = now - period_seconds
    added = sum(event.replicas for event in state.added if event.at > since)
    return added - sum(event.replicas for event in state.removed if event.at > since)


LONGEST_PERIOD_SECONDS = 1800.0
"""Kubernetes allows no longer period in a policy."""


def _changed(state: HpaState, now: float, current: int, replicas: int, reason: Cause) -> Decision:
    """The decision, with the change written down for the policies of later syncs."""
    since = now - LONGEST_PERIOD_SECONDS
    added = tuple(event for event in state.added if event.at > since)
    removed = tuple(event for event in state.removed if event.at > since)
    if replicas > current:
        added = (*added, At(now, replicas - current))
    elif replicas < current:
        removed = (*removed, At(now, current - replicas))
    return Decision(replicas, reason, HpaState(state.recommendations, added, removed))

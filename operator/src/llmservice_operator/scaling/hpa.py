"""The arithmetic of the HorizontalPodAutoscaler (autoscaling/v2), for one External metric.

It is used by the direct mode, for services without a HorizontalPodAutoscaler, and by the simulator.
Rules and rounding are those of Kubernetes: AverageValue target, tolerance, stabilization windows,
policies.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum


class PolicyType(StrEnum):
    PODS = "Pods"
    PERCENT = "Percent"


@dataclass(frozen=True, slots=True)
class ChangePolicy:
    """Limit of the change within any `period_seconds`: `value` replicas, or `value` percent of the
    replicas.
    """

    type: PolicyType
    value: int
    period_seconds: float


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """Limits on the speed of change in one direction.

    The policy that allows the largest change decides.
    """

    stabilization_window_seconds: float
    policies: tuple[ChangePolicy, ...]
    tolerance: float = 0.1


@dataclass(frozen=True, slots=True)
class Behavior:
    """`spec.behavior` of a HorizontalPodAutoscaler."""

    scale_up: ScalingRules
    scale_down: ScalingRules


@dataclass(frozen=True, slots=True)
class HpaSpec:
    """`spec` of a HorizontalPodAutoscaler with one metric."""

    behavior: Behavior
    min_replicas: int
    max_replicas: int
    target: float
    """Average value of the metric per replica."""


@dataclass(frozen=True, slots=True)
class At:
    """A number of replicas at one time."""

    at: float
    replicas: int


@dataclass(frozen=True, slots=True)
class HpaState:
    """Recommendations and changes of earlier syncs."""

    recommendations: tuple[At, ...] = ()
    added: tuple[At, ...] = ()
    removed: tuple[At, ...] = ()


class Cause(StrEnum):
    """Cause of a decision: the first word of `decisions[].reason` in the status.

    The reasons of conditions are in api/reasons.py.
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
    """The desired replicas, and the rule that decided."""

    replicas: int
    reason: Cause
    state: HpaState = field(repr=False)


def replicas_for(total: float, spec: HpaSpec, current: int) -> int:
    """Return the number of replicas that brings the average of `total` to the target.

    If the present average is within the tolerance, the result is `current`.
    """
    target, rules = spec.target, spec.behavior
    if current > 0:
        ratio = total / (target * current)
        within = 1 - rules.scale_down.tolerance <= ratio <= 1 + rules.scale_up.tolerance
        if within:
            return current
    # Kubernetes computes in thousandths, so a rounding error of a float must not add a replica.
    return math.ceil(round(1000 * total / target, 3) / 1000 - 1e-9)


def decide(
    state: HpaState, spec: HpaSpec, current: int, total: float | None, now: float
) -> Decision:
    """Return the decision of one sync for a metric that sums to `total`, or is missing (None)."""
    if current == 0 and spec.min_replicas > 0:
        return Decision(0, Cause.SCALED_TO_ZERO, state)
    if not state.recommendations:
        # A controller without a history takes the present number as its first recommendation.
        state = HpaState((At(now, current),), state.added, state.removed)
    if current > spec.max_replicas:
        return _changed(state, now, current, spec.max_replicas, Cause.TOO_MANY_REPLICAS)
    if current < spec.min_replicas:
        return _changed(state, now, current, spec.min_replicas, Cause.TOO_FEW_REPLICAS)
    if total is None:
        return Decision(current, Cause.METRICS_MISSING, state)

    desired = replicas_for(total, spec, current)
    reason = Cause.DESIRED_WITHIN_RANGE if desired != current else Cause.WITHIN_TOLERANCE
    stable, state = _stabilize(state, spec.behavior, current, desired, now)
    if stable != desired:
        is_down = desired < stable
        reason = Cause.SCALE_DOWN_STABILIZED if is_down else Cause.SCALE_UP_STABILIZED
    limited, limit_reason = _limit(state, spec, current, stable, now)
    return _changed(state, now, current, limited, limit_reason or reason)


def _stabilize(
    state: HpaState, behavior: Behavior, current: int, desired: int, now: float
) -> tuple[int, HpaState]:
    """Return `current`, limited to a range of recommendations, and the new state.

    The range extends from the lowest recommendation in the scale-up window to the highest in the
    scale-down window. Both windows include `desired`.
    """
    up_since = now - behavior.scale_up.stabilization_window_seconds
    down_since = now - behavior.scale_down.stabilization_window_seconds
    least = min([desired, *(r.replicas for r in state.recommendations if r.at > up_since)])
    most = max([desired, *(r.replicas for r in state.recommendations if r.at > down_since)])
    kept = tuple(r for r in state.recommendations if r.at > min(up_since, down_since))
    state = HpaState((*kept, At(now, desired)), state.added, state.removed)
    return min(max(current, least), most), state


def _limit(
    state: HpaState, spec: HpaSpec, current: int, desired: int, now: float
) -> tuple[int, Cause | None]:
    """Return the number of replicas that policies and bounds allow, and the cause of a limit."""
    if desired > current:
        allowed = max(current, _furthest(state, spec.behavior.scale_up, current, now, 1))
        highest = min(spec.max_replicas, allowed)
        if desired > highest:
            is_bound = highest == spec.max_replicas
            return highest, Cause.TOO_MANY_REPLICAS if is_bound else Cause.SCALE_UP_LIMITED
    elif desired < current:
        allowed = min(current, _furthest(state, spec.behavior.scale_down, current, now, -1))
        lowest = max(spec.min_replicas, allowed)
        if desired < lowest:
            is_bound = lowest == spec.min_replicas
            return lowest, Cause.TOO_FEW_REPLICAS if is_bound else Cause.SCALE_DOWN_LIMITED
    return desired, None


def _furthest(
    state: HpaState, rules: ScalingRules, current: int, now: float, direction: int
) -> int:
    """Return the number farthest from `current` that a policy allows.

    `direction` is 1 for up and -1 for down.
    """
    proposals = []
    for policy in rules.policies:
        start = current - _net_change(state, policy.period_seconds, now)
        if policy.type is PolicyType.PODS:
            proposals.append(start + direction * policy.value)
        elif direction > 0:
            proposals.append(math.ceil(start * (1 + policy.value / 100)))
        else:
            proposals.append(math.trunc(start * (1 - policy.value / 100)))
    return max(proposals) if direction > 0 else min(proposals)


def _net_change(state: HpaState, period_seconds: float, now: float) -> int:
    since = now - period_seconds
    added = sum(event.replicas for event in state.added if event.at > since)
    return added - sum(event.replicas for event in state.removed if event.at > since)


LONGEST_PERIOD_SECONDS = 1800.0
"""Longest period of a policy that Kubernetes allows."""


def _changed(state: HpaState, now: float, current: int, replicas: int, reason: Cause) -> Decision:
    """Return the decision, and record the change for the policies of later syncs."""
    since = now - LONGEST_PERIOD_SECONDS
    added = tuple(event for event in state.added if event.at > since)
    removed = tuple(event for event in state.removed if event.at > since)
    if replicas > current:
        added = (*added, At(now, replicas - current))
    elif replicas < current:
        removed = (*removed, At(now, current - replicas))
    return Decision(replicas, reason, HpaState(state.recommendations, added, removed))

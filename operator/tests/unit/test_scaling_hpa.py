"""Tests the HPA's arithmetic with cases of Kubernetes' own controller."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice_operator.scaling.hpa import (
    At,
    Behavior,
    Cause,
    ChangePolicy,
    HpaSpec,
    HpaState,
    PolicyType,
    ScalingRules,
    decide,
    replicas_for,
)

PODS, PERCENT = PolicyType.PODS, PolicyType.PERCENT
DEFAULT_UP = ScalingRules(0, (ChangePolicy(PODS, 4, 15), ChangePolicy(PERCENT, 100, 15)))
DEFAULT_DOWN = ScalingRules(300, (ChangePolicy(PERCENT, 100, 15),))
DEFAULT = Behavior(DEFAULT_UP, DEFAULT_DOWN)
"""The behavior of an HPA whose spec sets none."""
AT_ONCE = Behavior(DEFAULT_UP, ScalingRules(0, DEFAULT_DOWN.policies))
NOW = 10_000.0


def hpa(
    behavior: Behavior = DEFAULT, low: int = 1, high: int = 1000, target: float = 85
) -> HpaSpec:
    return HpaSpec(behavior, low, high, target)


@pytest.mark.parametrize(
    ("current", "total", "target", "expected"),
    [
        pytest.param(3, 8600, 2150, 4, id="external per-pod metric scales up"),
        pytest.param(5, 8600, 2867, 3, id="external per-pod metric scales down"),
        pytest.param(3, 8600, 2867, 3, id="external per-pod metric within tolerance"),
        pytest.param(3, 20000, 5000, 4, id="object per-pod metric scales up"),
        pytest.param(5, 6000, 2000, 3, id="object per-pod metric scales down"),
        pytest.param(4, 20000, 5000, 4, id="ratio of exactly one"),
        pytest.param(10, 935, 85, 10, id="upper edge of the tolerance holds"),
        pytest.param(10, 936, 85, 12, id="above the upper edge scales"),
        pytest.param(10, 765, 85, 10, id="lower edge of the tolerance holds"),
        pytest.param(10, 764, 85, 9, id="below the lower edge scales"),
        pytest.param(0, 170, 85, 2, id="no replica means no tolerance"),
        pytest.param(5, 0, 85, 0, id="zero is a value"),
        pytest.param(4, 255, 85, 3, id="an exact multiple needs no extra replica"),
    ],
)
def test_replicas_follow_the_controller(
    current: int, total: float, target: float, expected: int
) -> None:
    assert replicas_for(total, hpa(target=target), current) == expected


def rules(*policies: ChangePolicy, window: float = 0) -> ScalingRules:
    return ScalingRules(window, policies)


@pytest.mark.parametrize(
    ("scale_up", "current", "expected", "reason"),
    [
        pytest.param(DEFAULT_UP, 1, 5, Cause.SCALE_UP_LIMITED, id="default: four pods"),
        pytest.param(DEFAULT_UP, 10, 20, Cause.SCALE_UP_LIMITED, id="default: double"),
        pytest.param(rules(ChangePolicy(PODS, 3, 60)), 10, 13, Cause.SCALE_UP_LIMITED, id="pods"),
        pytest.param(
            rules(ChangePolicy(PERCENT, 25, 60)),
            10,
            13,
            Cause.SCALE_UP_LIMITED,
            id="percent rounds up",
        ),
        pytest.param(
            rules(ChangePolicy(PODS, 4, 60), ChangePolicy(PERCENT, 200, 60)),
            10,
            30,
            Cause.SCALE_UP_LIMITED,
            id="the policy that allows most",
        ),
    ],
)
def test_scale_up_keeps_to_its_policies(
    scale_up: ScalingRules, current: int, expected: int, reason: Cause
) -> None:
    behavior = Behavior(scale_up, DEFAULT_DOWN)

    decision = decide(HpaState(), hpa(behavior), current, 85.0 * 500, NOW)

    assert (decision.replicas, decision.reason) == (expected, reason)


@pytest.mark.parametrize(
    ("scale_down", "current", "expected"),
    [
        pytest.param(rules(ChangePolicy(PERCENT, 100, 15)), 100, 1, id="default: to the bound"),
        pytest.param(rules(ChangePolicy(PODS, 3, 60)), 100, 97, id="pods"),
        pytest.param(rules(ChangePolicy(PERCENT, 25, 60)), 10, 7, id="percent rounds down"),
        pytest.param(
            rules(ChangePolicy(PODS, 4, 60), ChangePolicy(PERCENT, 20, 60)),
            100,
            80,
            id="the policy that allows most",
        ),
    ],
)
def test_scale_down_keeps_to_its_policies(
    scale_down: ScalingRules, current: int, expected: int
) -> None:
    decision = decide(HpaState(), hpa(Behavior(DEFAULT_UP, scale_down)), current, 0, NOW)

    assert decision.replicas == expected


def test_changes_inside_the_period_count_against_the_policy() -> None:
    behavior = Behavior(rules(ChangePolicy(PODS, 4, 60)), DEFAULT_DOWN)
    state = HpaState((At(NOW, 10),), added=(At(NOW - 90, 5), At(NOW - 30, 3)))

    decision = decide(state, hpa(behavior), 10, 85.0 * 500, NOW)

    # Three of the ten replicas were added in this minute, so the minute began with seven.
    assert decision.replicas == 11


def test_removed_replicas_of_the_period_may_come_back() -> None:
    behavior = Behavior(rules(ChangePolicy(PODS, 4, 60)), DEFAULT_DOWN)
    state = HpaState((At(NOW, 10),), removed=(At(NOW - 30, 5),))

    assert decide(state, hpa(behavior), 10, 85.0 * 500, NOW).replicas == 19


@pytest.mark.parametrize(
    ("up", "down", "past", "wanted", "expected"),
    [
        pytest.param(0, 300, ((299, 9), (301, 20)), 2, 9, id="down to the most of the window"),
        pytest.param(
            300, 0, ((200, 3), (100, 6)), 8, 5, id="no rise above the least of the window"
        ),
        pytest.param(300, 0, ((200, 6), (100, 7)), 8, 6, id="rises to the least of the window"),
        pytest.param(0, 300, ((299, 4),), 2, 4, id="down partly"),
        pytest.param(0, 0, ((1, 9),), 2, 2, id="no windows"),
        pytest.param(0, 300, ((300, 9),), 2, 2, id="as old as the window is outside"),
    ],
)
def test_windows_stabilize(
    up: float, down: float, past: tuple[tuple[float, int], ...], wanted: int, expected: int
) -> None:
    behavior = Behavior(
        ScalingRules(up, (ChangePolicy(PODS, 100, 15),)),
        ScalingRules(down, (ChangePolicy(PODS, 100, 15),)),
    )
    state = HpaState(tuple(At(NOW - age, replicas) for age, replicas in past))

    decision = decide(state, hpa(behavior), 5 if expected != 9 else 10, 85.0 * wanted, NOW)

    assert decision.replicas == expected


@pytest.mark.parametrize(
    ("current", "total", "expected", "reason"),
    [
        pytest.param(12, 100.0, 10, Cause.TOO_MANY_REPLICAS, id="above the maximum"),
        pytest.param(1, 9999.0, 2, Cause.TOO_FEW_REPLICAS, id="below the minimum"),
        pytest.param(9, 9999.0, 10, Cause.TOO_MANY_REPLICAS, id="wants more than the maximum"),
        pytest.param(5, None, 5, Cause.METRICS_MISSING, id="no metric holds"),
        pytest.param(0, 500.0, 0, Cause.SCALED_TO_ZERO, id="zero was set by somebody"),
        pytest.param(5, 425.0, 5, Cause.WITHIN_TOLERANCE, id="on target"),
    ],
)
def test_bounds_and_holds_have_their_reason(
    current: int, total: float | None, expected: int, reason: Cause
) -> None:
    decision = decide(HpaState(), hpa(AT_ONCE, 2, 10), current, total, NOW)

    assert (decision.replicas, decision.reason) == (expected, reason)


def test_a_controller_that_has_just_started_does_not_drop_replicas() -> None:
    decision = decide(HpaState(), hpa(DEFAULT), 8, 85.0, NOW)

    assert (decision.replicas, decision.reason) == (8, Cause.SCALE_DOWN_STABILIZED)


@settings(deadline=None)
@given(
    current=st.integers(1, 50),
    total=st.none() | st.floats(0, 1e6),
    low=st.integers(1, 10),
    room=st.integers(0, 40),
)
def test_decisions_stay_within_bounds(
    current: int, total: float | None, low: int, room: int
) -> None:
    decision = decide(HpaState(), hpa(DEFAULT, low, low + room), current, total, NOW)

    if total is not None or not low <= current <= low + room:
        assert low <= decision.replicas <= low + room


@settings(deadline=None)
@given(
    past=st.lists(st.integers(1, 60), max_size=5),
    current=st.integers(1, 60),
    total=st.floats(0, 1e5),
    more=st.floats(0, 1e5),
)
def test_more_demand_never_means_fewer_replicas(
    past: list[int], current: int, total: float, more: float
) -> None:
    state = HpaState(tuple(At(NOW - 15 * (i + 1), n) for i, n in enumerate(reversed(past))))

    less = decide(state, hpa(DEFAULT, 1, 60), current, total, NOW)
    greater = decide(state, hpa(DEFAULT, 1, 60), current, total + more, NOW)

    assert greater.replicas >= less.replicas

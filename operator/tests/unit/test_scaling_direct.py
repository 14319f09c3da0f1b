"""Tests the pace of direct mode, and which replica is deleted first."""

import pytest

from llmservice_operator.scaling.deletion_cost import (
    Occupancy,
    deletion_costs,
    is_removal_near,
)
from llmservice_operator.scaling.direct import Sync, sync
from llmservice_operator.scaling.hpa import Cause, HpaSpec
from llmservice_operator.scaling.recommend import behavior_for

SPEC = HpaSpec(behavior_for(max_replicas=8, scale_down_window_seconds=90), 1, 8, 85.0)


def after(before: Sync | None, total: float | None, current: int, now: float) -> Sync:
    return sync(before, SPEC, current, total, now)


def test_direct_mode_decides_at_once_and_then_every_fifteen_seconds() -> None:
    first = after(None, 300.0, 1, now=0)
    assert first.decision.replicas == 4
    assert after(first, 600.0, 4, now=14) is first
    assert after(first, 600.0, 4, now=15).decision.replicas == 8


def test_unknown_holds_and_a_fall_waits_for_its_window() -> None:
    first = after(None, 300.0, 4, now=0)
    unknown = after(first, None, 4, now=15)
    assert (unknown.decision.replicas, unknown.decision.reason) == (4, Cause.METRICS_MISSING)
    held = after(unknown, 80.0, 4, now=30)
    assert held.decision.replicas == 4
    assert after(held, 80.0, 4, now=120).decision.replicas == 2


@pytest.mark.parametrize(
    ("needed", "replicas", "least", "near"),
    [(1.6, 2, 1, True), (1.8, 2, 1, False), (0.1, 1, 1, False), (0.1, 2, 2, False)],
)
def test_a_removal_is_near_when_the_load_is_well_below_and_may_go(
    needed: float, replicas: int, least: int, near: bool
) -> None:
    assert is_removal_near(needed, replicas, least) is near


def test_the_emptiest_replica_is_the_cheapest_and_the_coldest_cache_breaks_a_tie() -> None:
    costs = deletion_costs(
        [
            Occupancy("busy", 9, 50.0),
            Occupancy("warm", 0, 41.0),
            Occupancy("cold", 0, 0.0),
            Occupancy("one", 1, 0.0),
        ]
    )
    assert sorted(costs, key=lambda pod: costs[pod]) == ["cold", "warm", "one", "busy"]

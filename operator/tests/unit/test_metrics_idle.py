"""Tests the part of the load reports from which the operator ends and wakes idle services."""

from dataclasses import replace
from typing import Any

import pytest

from llmservice_operator.metrics_server import fleet as fleet_module
from llmservice_operator.scaling.assess import assess
from operator_support.fleet import KEY, TICK, World


@pytest.fixture
def world() -> World:
    made = World()
    made.pods.add("a")
    made.pods.servers["a"].running = 0
    made.held[KEY] = 0
    return made


async def test_a_report_says_for_how_long_nobody_has_used_the_service(world: World) -> None:
    fleet = world.fleet()
    await world.run(90, 8, fleet)
    assert fleet.reports[KEY].idle_seconds == 0.0
    await world.run(60, 0, fleet)
    assert fleet.reports[KEY].idle_seconds == 60.0
    world.held[KEY] = 1
    await world.run(TICK, 0, fleet)
    assert fleet.reports[KEY].idle_seconds == 0.0


async def test_a_replica_or_a_router_that_is_silent_is_not_idle(world: World) -> None:
    fleet = world.fleet()
    await world.run(90, 0, fleet)
    world.pods.silent.add("a")
    await world.run(TICK, 0, fleet)
    assert fleet.reports[KEY].idle_seconds is None
    world.pods.silent.clear()
    del world.held[KEY]
    await world.run(TICK, 0, fleet)
    assert fleet.reports[KEY].idle_seconds is None


async def test_a_service_whose_router_cannot_wake_it_is_not_idle_and_its_report_says_why(
    world: World,
) -> None:
    fleet = world.fleet()
    world.has_old_router = True
    await world.run(90, 0, fleet)
    assert (fleet.reports[KEY].idle_seconds, fleet.reports[KEY].has_old_router) == (None, True)
    world.has_old_router = False
    await world.run(TICK, 0, fleet)
    assert fleet.reports[KEY].idle_seconds is not None
    assert not fleet.reports[KEY].has_old_router


async def test_a_new_metrics_server_knows_nothing_about_the_time_before_it(world: World) -> None:
    await world.run(90, 0, world.fleet())
    later = world.fleet()
    await world.run(TICK, 0, later)
    assert later.reports[KEY].idle_seconds == 0.0


async def test_held_requests_are_compared_with_the_last_known_capacity(world: World) -> None:
    fleet = world.fleet()
    # The first replica learns the capacity.
    assert fleet.held_percent(KEY, 500) == fleet.held_percent(KEY, 1) == 1.0
    await world.run(90, 8, fleet)
    capacity = fleet.reports[KEY].capacity_requests_per_second
    assert capacity is not None
    del world.pods.servers["a"]
    await world.run(60, 0, fleet)
    assert fleet.held_percent(KEY, 500) == pytest.approx(100 * 500 / capacity / 120)
    assert fleet.reports[KEY].missing == "NoReadyReplica"


async def test_the_duration_of_the_last_start_is_reported(world: World) -> None:
    fleet = world.fleet()
    await world.run(90, 8, fleet)
    assert fleet.reports[KEY].last_start_seconds is None
    world.pods.add("b", is_ready=False)
    await world.run(30, 8, fleet)
    world.pods.servers["b"].become_ready(world.pods.now)
    await world.run(TICK, 8, fleet)
    assert fleet.reports[KEY].last_start_seconds == 30.0


async def test_a_service_without_replicas_is_not_assessed_until_it_has_one(world: World) -> None:
    fleet = world.fleet()
    await world.run(90, 8, fleet)
    before = fleet.reports[KEY].demand_percent
    del world.pods.servers["a"]
    await world.run(2 * TICK, 0, fleet)
    resting = fleet.reports[KEY]
    await world.run(3600, 0, fleet)
    report = fleet.reports[KEY]
    assert report == replace(resting, at=report.at, idle_seconds=None)
    assert not report.is_stale(world.pods.now)
    await world.run(TICK, 0, fleet)
    assert fleet.reports[KEY] is report, "a report that says the same is not built again"

    world.pods.add("b")
    await world.run(400, 8, fleet)  # longer than a scale-down window
    report = fleet.reports[KEY]
    assert report.demand_percent == pytest.approx(before, rel=0.05)
    assert report.message.startswith("The load is")


async def test_a_new_metrics_server_assesses_a_service_without_replicas_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assessed = []

    def counting(*arguments: Any, **switches: Any) -> Any:
        assessed.append(arguments)
        return assess(*arguments, **switches)

    monkeypatch.setattr(fleet_module, "assess", counting)
    empty = World()
    await empty.run(60, 0, empty.fleet())
    assert len(assessed) == 1

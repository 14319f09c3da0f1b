"""Tests the requests that a router holds, as a part of the demand."""

import pytest

from operator_support.scaling import TICK, demand_of, service


def test_all_requests_that_a_router_holds_count_as_a_queue() -> None:
    running = service(2)
    running.held = 0
    calm = running.run(300, rate=14)
    assert calm.capacity is not None
    running.held = 900

    parts = running.run(TICK, rate=14).parts

    assert parts is not None
    assert parts.backlog == pytest.approx(900 / calm.capacity / 120, rel=0.05)


def test_requests_that_a_router_holds_have_arrived() -> None:
    holding, queueing = service(2), service(2)
    holding.held = 0
    for running in (holding, queueing):
        running.run(300, rate=18)
    for _ in range(12):
        # The replicas take 18 of 54 requests per second, and the others wait.
        holding.held += 36 * int(TICK)
        held = holding.run(TICK, rate=18).parts
        queued = queueing.run(TICK, rate=54, served=18).parts
    assert held is not None
    assert queued is not None
    assert held.load == pytest.approx(queued.load, rel=0.01)

    for _ in range(24):
        holding.held -= 18 * int(TICK)
        emptied = holding.run(TICK, rate=18).parts
    assert emptied is not None
    assert emptied.load == pytest.approx(queueing.run(120, rate=18).parts.load, rel=0.05)  # type: ignore[union-attr]


def test_requests_that_a_router_holds_at_the_first_look_are_no_burst() -> None:
    running, holding = service(2), service(2)
    for each in (running, holding):
        each.run(300, rate=14)
    holding.held = 1000

    loads = [each.run(30, rate=14).parts for each in (running, holding)]

    assert loads[0] is not None
    assert loads[1] is not None
    assert loads[1].load == loads[0].load


def test_an_unknown_number_of_held_requests_is_not_zero() -> None:
    running = service(2)
    running.held = 900
    before = demand_of(running.run(300, rate=14).demand_percent)
    running.held = None

    assert demand_of(running.run(TICK, rate=14).demand_percent) == pytest.approx(before)


def test_a_number_of_held_requests_that_stays_unknown_is_forgotten() -> None:
    running, without = service(2), service(2)
    without.run(480, rate=14)
    running.held = 900
    running.run(300, rate=14)
    running.held = None
    running.run(60, rate=14)
    plain = demand_of(without.last.demand_percent if without.last else None)

    assert demand_of(running.run(120, rate=14).demand_percent) == pytest.approx(plain, rel=0.02)

    # What a router holds when it is heard again did not arrive at that moment.
    running.held = 900
    assert running.run(TICK, rate=14).is_bursty is False

"""Tests the requests that a router holds, as a part of the demand."""

from dataclasses import replace

import pytest

from llmservice_operator.scaling.demand import Demand
from llmservice_operator.scaling.held import HELD_SECONDS, HeldRequests
from llmservice_operator.scaling.signals import HoldCounters, RouterPod, RouterSnapshot, Scrape
from operator_support.scaling import TICK, Service, demand_of, service


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


def counting(rate: float) -> Service:
    """Return a service that has served `rate` requests per second behind a router that counts."""
    made = service(2)
    made.held, made.hold_counters = 0, HoldCounters()
    made.run(300, rate)
    return made


def parts_of(running: Service, rate: float) -> Demand:
    """Serve for one tick; return the demand, which must be known."""
    parts = running.run(TICK, rate).parts
    assert parts is not None
    return parts


SECOND = int(TICK)
"""Requests per tick, at one request per second."""


def test_requests_that_time_out_in_a_router_have_arrived() -> None:
    holding, queueing = counting(18), counting(18)
    for tick in range(24):
        # The replicas take 18 of 54 requests per second. From the fourth tick on, as many time out
        # as begin to wait.
        holding.wait(36 * SECOND, timed_out=36 * SECOND if tick > 3 else 0)
        held = parts_of(holding, 18)
        queued = queueing.run(TICK, rate=54, served=18).parts
    assert queued is not None
    assert held.load == pytest.approx(queued.load, rel=0.01)


def test_a_queue_that_drains_by_timeouts_is_no_fall_of_the_load() -> None:
    running = counting(18)
    before = parts_of(running, 18).load
    running.wait(900)
    for _ in range(12):
        parts_of(running, 18)
    for _ in range(6):
        running.wait(0, timed_out=150)
        assert parts_of(running, 18).load == pytest.approx(before, rel=0.01)
    assert running.held == 0


def test_requests_that_leave_a_router_count_once_in_the_replica_that_gets_them() -> None:
    running, direct = counting(18), counting(18)
    for _ in range(12):
        running.wait(9 * SECOND, released=9 * SECOND)
        released = parts_of(running, 18)
        parts = parts_of(direct, 18)
    assert released.load == pytest.approx(parts.load, rel=0.001)


@pytest.mark.parametrize(("refused", "counted"), [(9, 9), (10_000, 18)])
@pytest.mark.parametrize("way", ["refused", "left"])
def test_refused_and_impatient_requests_count_at_most_as_many_as_all_others(
    way: str, refused: int, counted: int
) -> None:
    running, direct = counting(18), counting(18)
    for _ in range(24):
        number = refused * SECOND
        if way == "refused":
            running.wait(0, refused=number)
        else:
            running.wait(number, left=number)
        given_up = parts_of(running, 18)
        more = direct.run(TICK, rate=18 + counted, served=18).parts
    assert more is not None
    assert given_up.load == pytest.approx(more.load, rel=0.01)


def test_the_requests_of_a_picker_that_starts_again_have_not_arrived_twice() -> None:
    running = counting(18)
    running.wait(500)
    before = [parts_of(running, 18) for _ in range(24)][-1].load
    running.held, running.hold_counters = 0, HoldCounters(arrived=10, released=10)
    running.router_started = running.now + 1
    # The replicas get the 500 requests.
    running.run(TICK, rate=18 + 500 / TICK, served=18)
    assert parts_of(running, 18).load == pytest.approx(before, rel=0.01)


def report(held: int, at: float = 105.0, **counters: float) -> RouterSnapshot:
    return RouterSnapshot(at, held, 1.0, HoldCounters(**counters))


def arrivals(
    before: RouterSnapshot | None, after: RouterSnapshot | None, at: float = 105.0
) -> tuple[float, int]:
    """Return the arrivals between two scrapes, and how many requests wait after them."""
    earlier = Scrape(100.0, (), (RouterPod("router", before),) if before else ())
    held, _ = HeldRequests().add(earlier, 95.0, 0.0)
    held, found = held.add(Scrape(at, (), (RouterPod("router", after),)), 100.0, 0.0)
    return sum(each.requests for each in found), held.number


BEFORE = report(20, at=100.0, arrived=100, released=80)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param(BEFORE, report(20, arrived=130, released=110), (0, 20), id="released"),
        pytest.param(BEFORE, report(50, arrived=130, released=80), (30, 50), id="waiting"),
        pytest.param(BEFORE, report(0, arrived=100, released=100), (-20, 0), id="all released"),
        pytest.param(BEFORE, report(0, arrived=100, released=80), (0, 0), id="all have left"),
        pytest.param(
            BEFORE, report(0, arrived=100, released=80, timed_out=20), (0, 0), id="all timed out"
        ),
        pytest.param(BEFORE, report(5, arrived=9, released=4), (-15, 5), id="counters fell"),
        pytest.param(
            BEFORE,
            replace(report(5, arrived=909, released=902, timed_out=2), started=101.0),
            (-13, 5),
            id="another process",
        ),
        pytest.param(BEFORE, RouterSnapshot(105.0, 0), (0, 20), id="the picker does not answer"),
        pytest.param(BEFORE, None, (0, 20), id="silent"),
        pytest.param(RouterSnapshot(100.0, 7), RouterSnapshot(105.0, 9), (2, 9), id="old router"),
        pytest.param(RouterSnapshot(100.0, 7), report(9, arrived=90), (2, 9), id="upgraded"),
        pytest.param(None, report(9, arrived=90), (0, 9), id="first look"),
        pytest.param(
            None,
            replace(report(9, arrived=30, released=21), started=101.0),
            (9, 9),
            id="new router",
        ),
    ],
)
def test_arrivals_follow_from_two_reports_of_a_router(
    before: RouterSnapshot | None, after: RouterSnapshot | None, expected: tuple[float, int]
) -> None:
    assert arrivals(before, after) == expected


def test_what_a_router_held_that_no_longer_exists_waits_no_more() -> None:
    held, _ = HeldRequests().add(Scrape(100.0, (), (RouterPod("router", BEFORE),)), 95.0, 0.0)
    held, found = held.add(Scrape(105.0, ()), 100.0, 0.0)
    assert ([each.requests for each in found], held.number) == ([-20], 0)


def test_a_router_that_stays_silent_is_forgotten() -> None:
    assert arrivals(BEFORE, None, at=100.0 + HELD_SECONDS) == (0, 0)

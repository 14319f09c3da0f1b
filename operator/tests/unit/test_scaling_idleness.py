"""Tests when a service is idle, and with how many replicas it starts again."""

from dataclasses import replace
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice_operator.scaling.idleness import (
    Idleness,
    held_percent,
    may_rest,
    woken_replicas,
)
from llmservice_operator.scaling.signals import (
    Counters,
    ReplicaReport,
    RouterPod,
    RouterSnapshot,
    Scrape,
    Snapshot,
)

TICK = 5.0
QUIET = Snapshot(
    at=0.0,
    started=0.0,
    counters=Counters(arrivals=7),
    running=0,
    waiting=0,
    kv_tokens=0.0,
    kv_capacity_tokens=1000.0,
    max_sequences=8,
    max_step_tokens=2048,
)
REPLICA = ReplicaReport("chat-1", 0.0, True, 1.0, False, QUIET)


def watch(*scrapes: tuple[tuple[ReplicaReport, ...], int | None]) -> Idleness:
    """Return the idleness after these scrapes: the replicas, and the requests that are held."""
    seen = Idleness()
    for number, (replicas, held) in enumerate(scrapes):
        at = TICK * number
        snapshot = None if held is None else RouterSnapshot(at, held, can_be_watched=True)
        seen = seen.add(Scrape(at, replicas, (RouterPod("router", snapshot),)))
    return seen


def reporting(**changes: object) -> ReplicaReport:
    return replace(REPLICA, snapshot=replace(QUIET, **changes))  # type: ignore[arg-type]


IDLE = ((REPLICA,), 0)


def test_idleness_is_counted_from_the_first_look() -> None:
    assert watch(IDLE).seconds == 0.0
    assert watch(*[IDLE] * 4).seconds == 3 * TICK


@pytest.mark.parametrize(
    "needed",
    [
        ((reporting(running=1),), 0),
        ((reporting(waiting=1),), 0),
        ((REPLICA,), 1),
        ((replace(REPLICA, is_loading_adapter=True),), 0),
        ((REPLICA, replace(REPLICA, name="chat-2", is_ready=False, snapshot=None)), 0),
        ((replace(reporting(running=1), is_draining=True),), 0),
    ],
    ids=["a stream", "a queue", "a held request", "an adapter", "a start", "a drain"],
)
def test_a_service_that_is_needed_is_not_idle(
    needed: tuple[tuple[ReplicaReport, ...], int | None],
) -> None:
    assert watch(IDLE, IDLE, needed).seconds == pytest.approx(0.0)


def test_a_service_is_not_idle_while_a_router_pod_cannot_tell_of_the_request_that_wakes_it() -> (
    None
):
    old, new = (RouterSnapshot(0.0, 0, can_be_watched=it) for it in (False, True))
    for found, is_known in (((new, new), True), ((new, old), False), ((old, None), False)):
        pods = tuple(RouterPod(f"router-{number}", it) for number, it in enumerate(found))
        seen = Idleness().add(Scrape(0.0, (REPLICA,), pods))
        assert (seen.seconds is not None) == is_known
        assert seen.has_old_router == (old in found)


def test_a_request_that_begins_and_ends_between_two_scrapes_counts() -> None:
    later = ((reporting(counters=Counters(arrivals=8)),), 0)
    assert watch(IDLE, IDLE, later).seconds == 0.0
    assert watch(IDLE, IDLE, later, later).seconds == TICK


def test_the_requests_of_a_server_that_has_started_again_count() -> None:
    restarted = ((reporting(started=9.0, counters=Counters(arrivals=1)),), 0)
    assert watch(IDLE, IDLE, restarted).seconds == 0.0
    unused = ((reporting(started=9.0, counters=Counters()),), 0)
    assert watch(IDLE, IDLE, unused).seconds == 2 * TICK


SILENT = replace(REPLICA, snapshot=None)


def test_silence_is_no_idleness_and_hides_no_request() -> None:
    assert watch(IDLE, IDLE, ((SILENT,), 0)).seconds is None
    assert watch(IDLE, IDLE, ((REPLICA,), None)).seconds is None
    # Nobody has asked during the silence.
    assert watch(IDLE, IDLE, ((SILENT,), 0), IDLE).seconds == 3 * TICK
    asked = ((reporting(counters=Counters(arrivals=8)),), 0)
    assert watch(IDLE, IDLE, ((SILENT,), 0), asked).seconds == 0.0


def test_a_pod_that_ends_without_an_answer_hinders_nothing() -> None:
    ending = replace(REPLICA, name="chat-2", is_draining=True, is_ready=False, snapshot=None)
    assert watch(IDLE, ((REPLICA, ending), 0)).seconds == TICK


def test_a_service_rests_after_its_time_and_never_while_its_load_is_unknown() -> None:
    assert not may_rest(None, 60)
    assert not may_rest(59.9, 60)
    assert may_rest(60, 60)


def test_held_requests_wake_as_many_replicas_as_start_them_within_a_cold_start() -> None:
    # A replica sustains 2 requests/s, so it starts 240 in a cold start of 120 s.
    assert held_percent(240, 2.0, 120.0) == pytest.approx(100.0)
    assert woken_replicas(held_percent(240, 2.0, 120.0), 85, 1, 9) == 2
    assert woken_replicas(held_percent(1, 2.0, 120.0), 85, 1, 9) == 1
    # Without a known capacity, the first replica measures it.
    assert woken_replicas(held_percent(10_000, None, 120.0), 85, 1, 9) == 1


@pytest.mark.parametrize("capacity", [0.0, 1e-310, 1e-9, 1.7e308, inf, nan, -1.0])
def test_an_impossible_capacity_still_starts_a_replica_and_at_most_one_for_each_request(
    capacity: float,
) -> None:
    assert 0.0 < held_percent(3, capacity, 120.0) <= 300.0
    assert 1 <= woken_replicas(held_percent(3, capacity, 120.0), 100, 1, 9) <= 3


@given(
    held=st.integers(0, 10**6),
    capacity=st.one_of(st.none(), st.floats(0, 10**4)),
    cold_start=st.floats(0, 3600),
    target=st.floats(1, 100),
    least=st.integers(0, 5),
    most=st.integers(5, 1000),
)
def test_a_wake_stays_within_the_bounds_and_happens_only_for_a_request(
    held: int, capacity: float | None, cold_start: float, target: float, least: int, most: int
) -> None:
    load = held_percent(held, capacity, cold_start)
    woken = woken_replicas(load, target, least, most)
    assert (woken == 0) == (held == 0)
    assert woken == 0 or max(least, 1) <= woken <= most
    assert woken_replicas(held_percent(held + 1, capacity, cold_start), target, least, most) >= (
        woken
    )


reports = st.builds(
    lambda arrived, running, waiting, ready, ending, silent, loading: replace(
        REPLICA,
        is_ready=ready,
        is_draining=ending,
        is_loading_adapter=loading,
        snapshot=None
        if silent
        else replace(QUIET, counters=Counters(arrivals=arrived), running=running, waiting=waiting),
    ),
    st.integers(0, 3),
    st.integers(0, 1),
    st.integers(0, 1),
    *[st.booleans()] * 4,
)


@given(
    st.lists(
        st.tuples(st.lists(reports, max_size=1).map(tuple), st.sampled_from([None, 0, 0, 1])),
        min_size=1,
        max_size=8,
    )
)
def test_no_service_is_idle_at_the_moment_at_which_something_needs_it(
    scrapes: list[tuple[tuple[ReplicaReport, ...], int | None]],
) -> None:
    seen = watch(*scrapes)
    replicas, held = scrapes[-1]
    needs = [
        (it.is_loading_adapter and it.snapshot is not None)
        or (it.snapshot is not None and it.snapshot.running + it.snapshot.waiting > 0)
        or (not it.is_ready and not it.is_draining)
        for it in replicas
    ]
    if held or any(needs):
        assert (seen.seconds or 0.0) == 0.0
        assert not may_rest(seen.seconds, 1.0)
    if held is None:
        assert seen.seconds is None
    assert 0.0 <= (seen.seconds or 0.0) < inf

"""Tests that the load of a silent replica is neither lost nor invented.

Every test compares the demand with that of the same service when all replicas respond.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice_operator.scaling.conditions import ServiceLevelObjective
from llmservice_operator.scaling.ledger import Ledger, Tick
from llmservice_operator.scaling.signals import Tally
from operator_support.scaling import TICK, TRUTH, Server, Service, load, service


def told(running: Service, seconds: float, rate: float, *silent: str) -> list[float]:
    """Return the demand in percent at every scrape of the next `seconds` seconds."""
    found = []
    for _ in range(int(seconds / TICK)):
        percent = running.run(TICK, rate, silent=frozenset(silent)).demand_percent
        assert percent is not None
        found.append(percent)
    return found


def warm(replicas: int, rate: float) -> tuple[Service, float]:
    """Return a service that has responded for five minutes, and its demand in percent."""
    running = service(replicas)
    running.run(300 - TICK, rate)
    (before,) = told(running, TICK, rate)
    return running, before


@settings(max_examples=25, deadline=None)
@given(
    replicas=st.integers(2, 5),
    each=st.floats(2, 25),
    ticks=st.integers(1, 30),
    data=st.data(),
)
def test_the_silence_of_some_replicas_never_lowers_the_demand(
    replicas: int, each: float, ticks: int, data: st.DataObject
) -> None:
    rate = each * replicas
    running, _ = warm(replicas, rate)
    # The capacity factor is corrected meanwhile, in steps of one percent.
    heard = told(running.copy(), ticks * TICK + 120, rate)
    some = st.sets(
        st.sampled_from([s.name for s in running.servers]), min_size=1, max_size=replicas // 2
    )
    silent = sorted(data.draw(some))

    during = told(running, ticks * TICK, rate, *silent)
    after = told(running, 120, rate)

    for seen, expected in zip(during, heard, strict=False):
        assert 0.985 * expected <= seen <= max(1.015 * expected, 85 * replicas)
    assert after == pytest.approx(heard[len(during) :], rel=0.015)


@settings(max_examples=25, deadline=None)
@given(before=st.floats(2, 30), after=st.floats(2, 60), gap=st.integers(1, 24))
def test_once_it_is_heard_again_a_silent_replica_counts_as_if_it_had_been_heard_all_along(
    before: float, after: float, gap: int
) -> None:
    running, _ = warm(3, before)
    # With an SLO, the capacity would be corrected meanwhile.
    running.slo = ServiceLevelObjective(None, None)
    heard = running.copy()
    running.run(gap * TICK, after, silent=frozenset({"pod-1"}))
    heard.run(gap * TICK, after)

    assert told(running, 60, after) == pytest.approx(told(heard, 60, after), rel=0.01)


def test_a_growing_load_is_seen_by_those_that_are_heard() -> None:
    running, before = warm(2, 14)

    seen = told(running, 60, 56, "pod-1")[-1]

    assert seen >= 1.9 * before


def test_the_queue_of_a_silent_replica_is_not_gone() -> None:
    running = service(2)
    running.run(300, 14)
    running.servers[1].waiting = 400
    (before,) = told(running, TICK, 14)

    assert min(told(running, 60, 14, "pod-1")) >= 0.99 * before


def test_a_replica_that_is_replaced_after_its_silence_leaves_its_load_behind() -> None:
    running, before = warm(2, 30)
    told(running, 40, 30, "pod-1")

    running.servers[1].is_ready = False
    during = told(running, 60, 30)

    assert min(during) >= 0.99 * before


def test_a_dead_replica_whose_load_moves_to_the_others_makes_no_growth() -> None:
    running, before = warm(4, 28)
    dead, seen = running.servers[3], []
    for _ in range(24):
        running.now += TICK
        for server in running.servers[:3]:
            server.serve(load(28 / 3, TICK))
        seen.append(running.look(silent=frozenset({dead.name})))

    assert max(seen) <= max(1.01 * before, 4 * 85)


def test_a_metrics_server_that_hears_a_replica_late_knows_its_load_by_what_it_does_since() -> None:
    known, late = service(2), service(2)
    known.run(120, 28)
    late.run(90, 28, silent=frozenset({"pod-1"}))

    seen = told(late, 30, 28)

    expected = told(known, TICK, 28)[0]
    assert seen[1:] == pytest.approx([expected] * (len(seen) - 1), rel=0.02)
    assert seen[0] >= 0.7 * expected


def test_a_replica_that_came_unheard_counts_from_when_it_was_ready() -> None:
    running, before = warm(2, 28)
    new = Server("pod-2", created=running.now, is_ready=False, started=running.now)
    running.servers.append(new)
    running.run(20, 28)
    new.become_ready(running.now)

    seen = told(running, 40, 28, "pod-2") + told(running, 60, 28)

    assert min(seen) >= 0.99 * before
    assert seen[-1] == pytest.approx(before, rel=0.01)


def test_a_ledger_spreads_a_span_over_the_ticks_that_it_touches() -> None:
    ledger = Ledger()
    for i in range(1, 5):
        ledger = ledger.add(Tick(5.0 * i, 5.0))

    filled = ledger.spread([Tick(15.0, 10.0, Tally(arrivals=8))])

    assert [tick.done.arrivals for tick in filled.ticks] == [0, 4, 4, 0]
    early = ledger.spread([Tick(5.0, 10.0, Tally(arrivals=8))])
    assert [tick.done.arrivals for tick in early.ticks] == [4, 0, 0, 0]
    late = ledger.spread([Tick(21.0, 6.0, Tally(arrivals=6))])
    assert [tick.done.arrivals for tick in late.ticks] == [0, 0, 0, 6]


def test_a_replica_that_is_heard_for_the_first_time_hides_no_other() -> None:
    running = service(3)
    running.run(60, 28, silent=frozenset({"pod-0"}))

    running.run(TICK, 28)

    assert {it.at for it in running.state.tracking.snapshots.values()} == {running.now}


def test_until_a_replica_of_a_new_engine_exists_the_present_ones_are_learned_from() -> None:
    running = service(2)
    running.run(120, 28)
    running.state = running.state.with_new_engine(running.now + 3600, replace(TRUTH, fixed=1.0))
    before = running.state.fit

    running.run(60, 28)
    learned = running.state.fit
    assert learned != before

    running.servers.append(Server("new", created=running.now + 7200, is_ready=False))
    running.run(60, 28)
    assert running.state.fit == learned

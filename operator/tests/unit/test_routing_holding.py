"""Tests which requests are held, and in which order they get a replica."""

from dataclasses import replace
from itertools import count

import pytest

from llmservice_operator.routing.holding import (
    FLOOD_REQUESTS,
    HELD_TURN,
    Counts,
    End,
    Holding,
    Request,
    TooManyHeld,
)
from llmservice_operator.routing.prefixes import BLOCK_BYTES
from llmservice_operator.routing.prompts import Prompt
from llmservice_operator.routing.router import Router
from operator_support.replica_reports import CACHE_TOKENS, MODEL, REPORT

SECOND_BLOCKS = 64
"""Number of blocks of a prompt that a replica computes in about one second."""
NUMBERS = count()


def holding(*names: str, **bounds: int) -> Holding:
    made = Holding(Router(MODEL), **bounds)
    for name in names:
        made.router.hear(name, REPORT, CACHE_TOKENS)
    return made


def request(
    seconds: float = 1.0,
    key: str = "",
    priority: int = 0,
    size: int = 0,
    deadline: float = float("inf"),
) -> Request:
    """Return a request whose prompt takes `seconds` and shares no prefix with others."""
    number, blocks = next(NUMBERS), int(seconds * SECOND_BLOCKS)
    chain = range(number << 20, (number << 20) + blocks)
    return Request(number, Prompt(chain, blocks * BLOCK_BYTES), size, key, priority, deadline)


def fill(made: Holding, now: float = 0.0) -> list[int]:
    """Route requests of one second until one is held; return the numbers of the others."""
    sent = []
    while made.pick(wanted := request(), now) is not None:
        sent.append(wanted.number)
    return sent


def finish(made: Holding, numbers: list[int], now: float) -> None:
    for number in numbers:
        made.router.started(number, now)
        made.router.ended(number, now)


def released(made: Holding, now: float) -> list[int]:
    return [each.number for each, _ in made.release(now)]


def test_a_request_is_held_while_its_first_token_would_be_late() -> None:
    made = holding("a", "b")
    sent = fill(made)
    assert len(sent) == 4
    assert len(made) == 1
    assert released(made, 0.0) == []
    assert len(made) == 1


def test_a_held_request_goes_to_the_first_replica_that_is_free() -> None:
    made = holding("a", "b")
    sent = fill(made)
    on_b = [each for each in sent if each in made.router.replicas["b"].waiting]
    finish(made, on_b, 0.5)
    (given,) = made.release(0.5)
    assert given[1].replica == "b"
    assert len(made) == 0
    assert released(made, 0.5) == []


def test_without_a_replica_a_request_is_held_until_there_is_one() -> None:
    made = holding()
    wanted = request()
    assert made.pick(wanted, 0.0) is None
    assert released(made, 1.0) == []
    made.router.hear("a", replace(REPORT, at=2.0), CACHE_TOKENS)
    assert released(made, 2.0) == [wanted.number]


def test_a_request_that_can_be_in_time_passes_those_that_are_late_in_any_case() -> None:
    made = holding("a")
    sent = fill(made)
    finish(made, sent[:-1], 0.5)
    assert released(made, 0.5) == []
    assert made.pick(request(), 0.5) is not None
    assert len(made) == 1


def test_a_held_request_gets_its_turn_however_many_others_are_in_time() -> None:
    made = holding("a")
    sent = fill(made)
    for _ in range(HELD_TURN):
        assert released(made, 0.0) == []
        finish(made, sent[:1], 0.0)
        wanted = request()
        assert made.pick(wanted, 0.0) is not None
        sent = [*sent[1:], wanted.number]
    assert len(released(made, 0.0)) == 1
    assert len(made) == 0


def test_a_flood_does_not_wait_in_a_replica_where_it_would_delay_others() -> None:
    made = holding("a")
    made.pick(request(0.2, "other"), 0.0)
    for _ in range(3 * FLOOD_REQUESTS):
        made.pick(request(0.2, "flood"), 0.0)
    assert len(made) > FLOOD_REQUESTS
    sent = list(made.router.replicas["a"].waiting)
    for now in range(1, 4):
        finish(made, sent, float(now))
        sent = released(made, float(now))
        # One at a time, although the limit of the first token would allow many more.
        assert len(sent) == 1
        assert made.pick(request(0.2, "flood"), float(now)) is None
    other = request(0.2, "other")
    pick = made.pick(other, 3.0)
    assert pick is not None
    assert pick.seconds is not None
    assert pick.seconds < 0.6


def test_a_key_alone_may_fill_the_replicas_up_to_the_limit() -> None:
    made = holding("a")
    for _ in range(3 * FLOOD_REQUESTS):
        made.pick(request(0.2, "only"), 0.0)
    finish(made, list(made.router.replicas["a"].waiting)[:5], 1.0)
    assert made.pick(request(0.2, "only"), 1.0) is not None


def test_the_work_of_a_key_is_remembered_while_none_of_its_requests_is_held() -> None:
    made = holding()
    before = request(8.0, "busy")
    assert made.pick(before, 0.0) is None
    made.router.hear("a", REPORT, CACHE_TOKENS)
    assert released(made, 0.0) == [before.number]
    busy, idle = request(1.0, "busy"), request(1.0, "idle")
    for each in (busy, idle):
        assert made.pick(each, 0.0) is None
    finish(made, [before.number], 1.0)
    assert released(made, 1.0)[0] == idle.number


def test_keys_take_turns_by_the_work_that_they_were_given() -> None:
    made = holding()
    large = [request(4.0, "large") for _ in range(3)]
    small = [request(1.0, "small") for _ in range(6)]
    for each in [*large, *small]:
        assert made.pick(each, 0.0) is None
    order = []
    for step in range(9):
        made.router.hear("a", replace(REPORT, at=float(step)), CACHE_TOKENS)
        (number,) = released(made, float(step))
        order.append("large" if number in [each.number for each in large] else "small")
        finish(made, [number], float(step))
    assert order[:6] == ["large", "small", "small", "small", "small", "large"]


def test_a_key_that_comes_late_has_no_claim_to_the_past() -> None:
    made = holding()
    for each in [request(4.0, "first") for _ in range(4)]:
        made.pick(each, 0.0)
    made.router.hear("a", replace(REPORT, at=1.0), CACHE_TOKENS)
    finish(made, released(made, 1.0), 1.0)
    made.router.remove("a")
    late = [request(4.0, "second") for _ in range(3)]
    for each in late:
        made.pick(each, 1.0)
    order = []
    for step in range(2, 6):
        made.router.hear("a", replace(REPORT, at=float(step)), CACHE_TOKENS)
        (number,) = released(made, float(step))
        order.append(number in [each.number for each in late])
        finish(made, [number], float(step))
    assert sum(order) == 2


def test_a_greater_priority_goes_first_and_no_lesser_one_passes_it() -> None:
    made = holding("a")
    sent = fill(made)
    urgent = request(priority=1)
    assert made.pick(urgent, 0.0) is None
    finish(made, sent[:-1], 0.2)
    assert made.pick(request(0.1), 0.2) is None
    finish(made, sent[-1:], 0.2)
    assert released(made, 0.2)[0] == urgent.number


def test_held_requests_are_bounded_in_number_and_in_bytes() -> None:
    few = holding(most_requests=2)
    for _ in range(2):
        few.pick(request(), 0.0)
    with pytest.raises(TooManyHeld, match="try again"):
        few.pick(request(), 0.0)
    small = holding(most_bytes=1000)
    small.pick(request(size=800), 0.0)
    with pytest.raises(TooManyHeld):
        small.pick(request(size=300), 0.0)
    small.pick(request(size=200), 0.0)
    assert len(small) == 2


def test_requests_past_their_deadline_and_requests_whose_client_left_are_forgotten() -> None:
    made = holding()
    late, gone, stays = request(deadline=3.0, size=5), request(key="k"), request(deadline=9.0)
    for each in (late, gone, stays):
        made.pick(each, 0.0)
    assert made.expired(2.9) == []
    assert made.expired(3.0) == [late]
    made.leave(gone.number)
    made.leave(gone.number)
    made.router.hear("a", replace(REPORT, at=4.0), CACHE_TOKENS)
    assert released(made, 4.0) == [stays.number]
    assert made._queues == {}
    assert made._held == {}
    assert made._bytes == 0


def test_a_held_request_whose_warm_replica_is_free_goes_before_one_whose_replica_is_not() -> None:
    made = holding("a", "b")
    earlier = [request(1.5), request(1.5)]
    picks = [made.pick(each, 0.0) for each in earlier]
    assert [each and each.replica for each in picks] == ["a", "b"]
    finish(made, [each.number for each in earlier], 0.1)
    busy = request(0.9)
    made.router.replicas["a"].is_draining = True
    assert made.pick(busy, 0.1) is not None
    made.router.replicas["b"].is_draining = True
    of_b, of_a = (request()._replace(prompt=each.prompt) for each in reversed(earlier))
    for each in (of_b, of_a):
        assert made.pick(each, 0.1) is None
    for replica in made.router.replicas.values():
        replica.is_draining = False
    assert released(made, 0.1)[0] == of_a.number


def test_the_first_held_request_is_not_passed_for_ever() -> None:
    made = holding()
    cold = request(0.5)
    made.pick(cold, 0.0)
    made._passed = HELD_TURN
    made.router.hear("a", replace(REPORT, at=1.0), CACHE_TOKENS)
    assert released(made, 1.0)[0] == cold.number


def test_the_ends_of_held_requests_are_counted() -> None:
    made = holding(most_requests=5)
    sent, late, moved, gone, stays = (request() for _ in range(5))
    for each in (sent, late, moved, gone, stays):
        assert made.pick(each, 0.0) is None
    for _ in range(2):
        with pytest.raises(TooManyHeld):
            made.pick(request(), 0.0)
    made.leave(late.number, End.TIMED_OUT)
    made.leave(moved.number, End.MOVED)
    made.leave(gone.number)
    # The second end of a request changes nothing.
    made.leave(gone.number, End.TIMED_OUT)
    assert made.counts == Counts(arrived=5, released=1, timed_out=1, refused=2)
    made.router.hear("a", replace(REPORT, at=1.0), CACHE_TOKENS)
    assert sent.number in released(made, 1.0)
    counts = made.counts
    assert len(made) == counts.arrived - counts.released - counts.timed_out - 1

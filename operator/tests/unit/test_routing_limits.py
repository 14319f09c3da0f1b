"""Tests the limits of clients: what is admitted, what is settled, and what a follower knows."""

from collections import Counter, deque
from collections.abc import Iterable
from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmservice_operator.routing.limits import (
    MINUTE_SECONDS,
    Counted,
    Exceeded,
    Limiter,
    Limits,
    Standing,
)
from llmservice_operator.routing.settlements import SETTLE_SECONDS, Reservation, Settlements

LIMITS = Limits(requests=5, tokens=1000, concurrent=3)
AFTER_A_MINUTE = MINUTE_SECONDS + 1


def admitted(limiter: Limiter, tokens: float, now: float, client: str = "a") -> Reservation:
    found = limiter.admit(client, tokens, now)
    assert isinstance(found, Reservation)
    return found


def refused(limiter: Limiter, tokens: float, now: float, client: str = "a") -> Exceeded:
    found = limiter.admit(client, tokens, now)
    assert isinstance(found, Exceeded)
    return found


def remaining(limiter: Limiter, now: float, client: str = "a") -> dict[str, int]:
    return {name: each.remaining for name, each in limiter.standing(client, now).items()}


def test_a_request_above_the_limit_is_told_when_the_first_one_is_a_minute_old() -> None:
    limiter = Limiter(Limits(requests=2))
    admitted(limiter, 0, 0.0)
    admitted(limiter, 0, 30.0)
    assert refused(limiter, 0, 31.0) == ("requests", 2, 30.0)
    admitted(limiter, 0, 61.0)
    assert refused(limiter, 0, 61.0).seconds == 30.0


def test_reserved_tokens_count_until_the_replica_has_counted_fewer() -> None:
    limiter = Limiter(Limits(tokens=1000))
    limiter.hear("r", 0.0, 0.0, {}, 0.0)
    request = admitted(limiter, 900, 0.0)
    limiter.sent(request, "r")
    assert refused(limiter, 200, 1.0) == ("tokens", 1000, 60.0)
    limiter.end(request, 0.0, 2.0)
    limiter.hear("r", 0.0, 2.1, {"a": 50}, 2.1)
    assert refused(limiter, 200, 2.1)
    limiter.hear("r", 0.0, 2.0 + SETTLE_SECONDS, {"a": 50}, 3.0)
    assert remaining(limiter, 3.0) == {"tokens": 950}


def test_tokens_beyond_the_reservation_are_counted_later() -> None:
    limiter = Limiter(Limits(tokens=1000))
    limiter.hear("r", 0.0, 0.0, {"a": 7}, 0.0)
    request = admitted(limiter, 100, 0.0)
    limiter.sent(request, "r")
    limiter.end(request, 0.0, 1.0)
    limiter.hear("r", 0.0, 5.0, {"a": 407}, 5.0)
    assert remaining(limiter, 5.0) == {"tokens": 600}
    assert remaining(limiter, AFTER_A_MINUTE) == {"tokens": 700}


def test_a_request_that_alone_exceeds_the_limit_never_fits() -> None:
    assert refused(Limiter(LIMITS), 1001, 0.0) == ("tokens", 1000, inf)


def test_the_answer_of_a_client_that_leaves_is_counted_by_its_estimate() -> None:
    limiter = Limiter(Limits(tokens=1000))
    limiter.hear("r", 0.0, 0.0, {}, 0.0)
    request = admitted(limiter, 900, 0.0)
    limiter.sent(request, "r")
    limiter.end(request, 300.0, 2.0)
    limiter.hear("r", 0.0, 9.0, {}, 9.0)
    assert remaining(limiter, 9.0) == {"tokens": 700}


def test_a_request_without_a_replica_gives_everything_back() -> None:
    limiter = Limiter(LIMITS)
    limiter.cancel(admitted(limiter, 900, 0.0), 1.0)
    assert remaining(limiter, 1.0) == {"requests": 5, "tokens": 1000}


def test_a_restarted_replica_begins_to_count_again() -> None:
    limiter = Limiter(Limits(tokens=1000))
    limiter.hear("r", 0.0, 0.0, {"a": 500}, 0.0)
    request = admitted(limiter, 400, 0.0)
    limiter.sent(request, "r")
    limiter.end(request, 0.0, 1.0)
    limiter.hear("r", 7.0, 3.0, {"a": 30}, 3.0)
    assert remaining(limiter, 3.0) == {"tokens": 970}


def test_requests_at_a_replica_that_ended_keep_their_reservation() -> None:
    limiter = Limiter(Limits(tokens=1000))
    limiter.hear("r", 0.0, 0.0, {}, 0.0)
    request = admitted(limiter, 400, 0.0)
    limiter.sent(request, "r")
    limiter.remove("r")
    limiter.sent(request, "s")
    limiter.end(request, 0.0, 1.0)
    assert remaining(limiter, 3.0) == {"tokens": 600}
    assert remaining(limiter, AFTER_A_MINUTE) == {"tokens": 1000}


def test_a_retry_at_another_replica_is_settled_there() -> None:
    limiter = Limiter(Limits(tokens=1000))
    for name in ("r", "s"):
        limiter.hear(name, 0.0, 0.0, {}, 0.0)
    request = admitted(limiter, 400, 0.0)
    limiter.sent(request, "r")
    limiter.sent(request, "s")
    limiter.end(request, 0.0, 1.0)
    limiter.hear("r", 0.0, 5.0, {}, 5.0)
    assert remaining(limiter, 5.0) == {"tokens": 600}
    limiter.hear("s", 0.0, 5.0, {"a": 10}, 5.0)
    assert remaining(limiter, 5.0) == {"tokens": 990}


def test_a_client_has_its_own_limits_or_the_default() -> None:
    limiter = Limiter(Limits(requests=1), {"b": Limits(requests=2), "c": Limits()})
    for client, most in (("a", 1), ("b", 2), ("c", 9)):
        for _ in range(most):
            admitted(limiter, 0, 0.0, client)
    refused(limiter, 0, 0.0, "a")
    refused(limiter, 0, 0.0, "b")
    assert limiter.standing("c", 0.0) == {}


def test_the_limit_that_holds_longest_is_told() -> None:
    limiter = Limiter(Limits(requests=1, concurrent=1))
    admitted(limiter, 0, 0.5)
    assert refused(limiter, 0, 20.0) == ("requests", 1, 41.0)


def test_the_whole_limit_is_available_when_the_last_request_is_a_minute_old() -> None:
    limiter = Limiter(LIMITS)
    admitted(limiter, 100, 0.0)
    admitted(limiter, 200, 10.0)
    assert limiter.standing("a", 11.0) == {
        "requests": Standing(5, 3, 60.0),
        "tokens": Standing(1000, 700, 60.0),
    }


def follower_of(limiter: Limiter, now: float = 0.0, ahead: float = 1000.25) -> Limiter:
    """Return a limiter, on another clock, that follows `limiter` from now on."""
    made = Limiter(limiter.limits(""))
    for message in limiter.copy(now):
        made.follow(message, now + ahead)

    def tell(told: Counted) -> None:
        made.follow(told, now + ahead)

    limiter.tell = tell
    return made


def test_a_follower_knows_what_every_client_uses() -> None:
    limiter = Limiter(LIMITS)
    open_ = admitted(limiter, 100, 0.0)
    follower = follower_of(limiter)
    assert remaining(follower, 1000.25) == remaining(limiter, 0.0)
    limiter.cancel(admitted(limiter, 500, 0.0), 0.0)
    limiter.end(open_, 0.0, 0.0)
    for tokens in (200, 300):
        admitted(limiter, tokens, 0.0)
    assert remaining(follower, 1000.25) == {"requests": 2, "tokens": 400}
    admitted(follower, 0, 1000.25)
    assert refused(follower, 0, 1000.25).name == "concurrent"
    follower.lose("a", 2)
    admitted(follower, 0, 1000.25)


def test_a_follower_leaves_the_counters_of_replicas_to_the_router_that_admits() -> None:
    follower = follower_of(Limiter(LIMITS))
    follower.hear("r", 0.0, 0.0, {}, 0.0)
    follower.hear("r", 0.0, 1.0, {"a": 500}, 1.0)
    assert remaining(follower, 1.0)["tokens"] == 1000


def test_copies_of_two_routers_that_follow_each_other_do_not_add_up() -> None:
    limiter = Limiter(LIMITS)
    admitted(limiter, 100, 0.0)
    late = Limiter(LIMITS)
    for each in (*limiter.copy(0.0), *follower_of(limiter, ahead=1000.0).copy(1000.0)):
        late.follow(each, 50.0)
    assert remaining(late, 50.0) == {"requests": 4, "tokens": 900}


def test_the_clients_of_other_routers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmservice_operator.routing.limits.MOST_CLIENTS", 3)
    limiter = Limiter(LIMITS)
    for at in range(5):
        assert limiter.follow(Counted(str(at), 0.0, in_progress=1), 0.0) == int(at < 3)
    assert len(limiter) == 3


def steps_of(*ways: str) -> st.SearchStrategy[list[tuple[float, str, int, float, float, str]]]:
    return st.lists(
        st.tuples(
            st.floats(0, 20),  # seconds since the last step
            st.sampled_from("ab"),
            st.integers(0, 600),  # tokens that are reserved
            st.floats(0, 1),  # share of them that is used
            st.floats(0, 90),  # seconds until the end
            st.sampled_from(ways),
        ),
        max_size=60,
    )


def most_within_a_minute(amounts: Iterable[tuple[float, float]]) -> float:
    """Return the largest sum of amounts, sorted by time, in any 60 seconds."""
    window, total, most = deque[tuple[float, float]](), 0.0, 0.0
    for at, amount in amounts:
        window.append((at, amount))
        total += amount
        while window[0][0] <= at - MINUTE_SECONDS:
            total -= window.popleft()[1]
        most = max(most, total)
    return most


# No counter tells a request that a client has left from one of another router.
@given(steps_of("counted", "cancelled", "left") | steps_of("counted", "cancelled", "forwarded"))
# Tokens that a replica has counted for another router's request, while a request has just ended.
@example(
    [
        (0.0, "a", 268, 1.0, 0.0, "counted"),
        (0.0, "a", 107, 1.0, 0.0, "forwarded"),
        (0.0, "a", 107, 1.0, 0.0, "forwarded"),
        (0.0, "a", 519, 1.0, 0.0, "counted"),
    ]
)
# A request whose client has left takes the tokens of no other request.
@example(
    [
        (0.0, "a", 388, 1.0, 0.0, "left"),
        (0.0, "a", 181, 1.0, 0.0, "counted"),
        (1.0, "b", 0, 0.0, 0.0, "counted"),
        (0.0, "a", 432, 1.0, 0.0, "counted"),
    ]
)
# Nor those of a request that has just ended.
@example(
    [
        (0.0, "a", 221, 1.0, 0.0, "counted"),
        (0.0, "a", 221, 1.0, 0.0, "left"),
        (1.0, "a", 169, 1.0, 0.0, "counted"),
        (0.0, "a", 0, 0.0, 0.0, "counted"),
        (0.0, "a", 390, 1.0, 0.0, "counted"),
    ]
)
def test_no_limit_is_ever_exceeded_and_nothing_is_left_over(
    steps: list[tuple[float, str, int, float, float, str]],
) -> None:
    limiter, now = Limiter(LIMITS), 0.0
    limiter.hear("r", 0.0, now, {}, now)
    totals = Counter[str]()
    sent = dict[str, list[tuple[float, int]]](a=[], b=[])
    open_ = list[tuple[float, Reservation, int, str]]()

    def run_until(time: float) -> None:
        for end in sorted((each for each in open_ if each[0] <= time), key=lambda each: each[0]):
            open_.remove(end)
            at, reservation, used, way = end
            if way == "cancelled":
                limiter.cancel(reservation, at)
            elif way == "forwarded":
                limiter.end_elsewhere(reservation, at)
            else:
                limiter.end(reservation, used if way == "left" else 0, at)
            if way in ("counted", "forwarded"):
                totals[reservation.client] += used
            limiter.hear("r", 0.0, at, totals.copy(), at)

    for pause, client, tokens, share, seconds, way in steps:
        now += pause
        run_until(now)
        found = limiter.admit(client, tokens, now)
        if isinstance(found, Exceeded):
            assert found.seconds > 0
            continue
        used = 0 if way == "cancelled" else int(share * tokens)
        if way in ("counted", "left"):
            limiter.sent(found, "r")
        open_.append((now + seconds, found, used, way))
        if way != "cancelled":
            sent[client].append((now, used))
        in_progress = sum(each[1].client == client for each in open_)
        assert in_progress <= LIMITS.concurrent  # type: ignore[operator]
    run_until(inf)
    for each in sent.values():
        assert most_within_a_minute((at, 1) for at, _ in each) <= 5
        assert most_within_a_minute(each) <= 1000
    now += 90 + 2 * SETTLE_SECONDS
    limiter.hear("r", 0.0, now, totals, now)
    now += AFTER_A_MINUTE
    assert remaining(limiter, now) == {"requests": 5, "tokens": 1000}
    admitted(limiter, 1000, now, "c")
    limiter.hear("r", 0.0, now, totals, now)
    assert len(limiter) == 1
    assert not any(each.open or each.counted for each in limiter._settlements._replicas.values())


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from("abc")), max_size=80))
def test_a_refused_client_is_admitted_after_the_time_that_it_was_told(
    steps: list[tuple[float, str]],
) -> None:
    limiter, now = Limiter(Limits(requests=3, tokens=500)), 0.0
    for pause, client in steps:
        now += pause
        found = limiter.admit(client, 180, now)
        if isinstance(found, Exceeded):
            assert found.seconds <= AFTER_A_MINUTE
            now += found.seconds
            limiter.end(admitted(limiter, 180, now, client), 0.0, now)
        else:
            limiter.end(found, 0.0, now)


def test_counted_tokens_are_not_moved_to_an_older_request() -> None:
    limiter = Limiter(Limits(tokens=1000))
    limiter.hear("r", 0.0, 0.0, {}, 0.0)
    old, new = admitted(limiter, 500, 0.0), admitted(limiter, 500, 30.0)
    for each in (old, new):
        limiter.sent(each, "r")
        limiter.end(each, 0.0, 31.0)
    limiter.hear("r", 0.0, 40.0, {"a": 500}, 40.0)
    assert remaining(limiter, 40.0) == {"tokens": 500}
    assert remaining(limiter, AFTER_A_MINUTE) == {"tokens": 500}


def test_a_client_that_a_replica_does_not_count_apart_keeps_its_reservations() -> None:
    settlements = Settlements()
    assert list(settlements.hear("a-0", 1.0, 0.0, {"known": 0.0})) == []
    known, further = (Reservation(name, 0.0, 900.0, ended=1.0) for name in ("known", "further"))
    for each in (known, further):
        settlements.add(each, "a-0")

    found = list(settlements.hear("a-0", 1.0, 60.0, {"known": 400.0, "other": 800.0}))

    assert [(client, tokens) for client, _, tokens in found if client != "other"] == [
        ("known", 400.0)
    ]
    assert further.tokens == 900.0

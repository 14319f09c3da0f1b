"""Tests of the router: which replica a request is sent to, and why."""

from dataclasses import replace
from itertools import count

import pytest

from llmservice_operator.api.calibration import LENGTH_BUCKETS
from llmservice_operator.routing.prefixes import BLOCK_BYTES, PrefixIndex
from llmservice_operator.routing.prompts import Prompt
from llmservice_operator.routing.ratios import FadingRatio
from llmservice_operator.routing.router import GUESSED_BYTES_PER_TOKEN, MOST_BLOCKS, Router
from llmservice_operator.scaling.signals import Counters, Snapshot
from operator_support.replica_reports import CACHE_TOKENS, MODEL, REPORT

NUMBERS = count()


def router(*names: str) -> Router:
    made = Router(MODEL)
    for name in names:
        made.hear(name, REPORT, CACHE_TOKENS)
    return made


def prompt(first: int, blocks: int) -> Prompt:
    """Return a prompt whose blocks are numbered from `first`."""
    return Prompt(tuple(range(first, first + blocks)), blocks * BLOCK_BYTES)


def pick(made: Router, wanted: Prompt, now: float = 0.0, *, ends: bool = False) -> str:
    number = next(NUMBERS)
    chosen = made.pick(number, wanted, now)
    assert chosen is not None
    if ends:
        made.started(number, now)
        made.ended(number, now)
    return chosen.replica


def test_a_conversation_returns_to_the_replica_that_has_its_prefix() -> None:
    made = router("a", "b", "c")
    first = pick(made, prompt(0, 40), ends=True)
    pick(made, prompt(1000, 40), ends=True)
    assert {pick(made, prompt(0, 40 + more), ends=True) for more in range(1, 9)} == {first}


def test_different_prompts_are_spread_over_all_replicas() -> None:
    made = router("a", "b", "c")
    assert {pick(made, prompt(1000 * i, 40)) for i in range(3)} == {"a", "b", "c"}


def test_a_long_queue_outweighs_a_warm_cache() -> None:
    made = router("a", "b")
    warm = pick(made, prompt(0, 20), ends=True)
    for i in range(1, 60):
        wanted = prompt(1000 * i, 400)
        choice = made._choice(warm, made.replicas[warm], wanted, 0.0)
        made.send(-i, wanted, choice)
    assert pick(made, prompt(0, 21)) != warm


def test_a_backlog_does_not_draw_more_requests_to_the_replica_that_has_their_prefix() -> None:
    made = router("a", "b", "c", "d")
    for i in range(200):
        number = 1000 * (i + 1)
        pick(made, Prompt((*range(40), *range(number, number + 8)), 48 * BLOCK_BYTES), i / 40)
    waits = [each.wait_of(1.0, 5.0).start for each in made.replicas.values()]
    assert max(waits) < min(waits) + 2.0


def test_a_draining_replica_gets_no_further_request_even_with_the_prefix() -> None:
    made = router("a", "b")
    warm = pick(made, prompt(0, 40), ends=True)
    made.drain(warm)
    assert pick(made, prompt(0, 41)) != warm


def test_the_owner_of_an_object_is_priced_as_any_choice_and_counted_like_one() -> None:
    made = router("a", "b")
    wanted = prompt(0, 40)
    priced, late = (made.choose_owner("b", wanted, now) for now in (0.0, 60.0))
    assert priced is not None
    assert priced.wait is not None
    assert late is not None
    assert late.wait is None
    assert [each.replica for each in (priced, late)] == ["b", "b"]
    made.send(next(NUMBERS), wanted, priced)
    assert made.replicas["b"].own_requests == 1
    assert made.choose_owner("c", wanted, 0.0) is None
    made.drain("b")
    assert made.choose_owner("b", wanted, 0.0) is None


def test_without_any_replica_there_is_no_choice() -> None:
    assert Router(MODEL).pick(1, prompt(0, 4), 0.0) is None


def test_without_recent_reports_the_replica_with_the_fewest_requests_is_chosen() -> None:
    made = router("a", "b")
    late = 60.0
    chosen = [made.pick(i, prompt(0, 40), late) for i in range(4)]
    assert [each.replica for each in chosen if each] == ["a", "b", "a", "b"]
    assert all(each and each.seconds is None for each in chosen)


def test_a_replica_whose_report_is_old_gets_nothing_while_another_one_reports() -> None:
    made = router("a", "b")
    made.hear("b", replace(REPORT, at=60.0), CACHE_TOKENS)
    assert {pick(made, prompt(1000 * i, 40), 60.0) for i in range(5)} == {"b"}


def test_a_replica_that_started_again_has_an_empty_cache() -> None:
    made = router("a", "b")
    warm = pick(made, prompt(0, 40), ends=True)
    assert made.replicas[warm].index.matched(prompt(0, 40).chain) == 40
    made.hear(warm, replace(REPORT, at=1.0, started=1.0), CACHE_TOKENS)
    assert made.replicas[warm].index.matched(prompt(0, 40).chain) == 0


def test_a_cache_that_saves_nothing_loses_its_discount() -> None:
    made = router("a")
    replica = made.replicas["a"]
    for second in range(1, 30):
        pick(made, prompt(0, 40), float(second), ends=True)
        arrived = Counters(prompt_tokens_arrived=10_000.0 * second)
        made.hear("a", replace(REPORT, at=second + 0.5, counters=arrived), CACHE_TOKENS)
    assert replica.trust.value < 0.1
    dispatch = made._choice("a", replica, prompt(0, 40), 30.0).dispatch
    assert dispatch.uncached > 0.9 * dispatch.tokens


def test_the_bytes_of_a_token_are_learned_from_the_reports() -> None:
    made = router("a")
    for second in range(1, 60):
        wanted = prompt(1000 * second, 100)
        pick(made, wanted, float(second), ends=True)
        arrived = Counters(prompt_tokens_arrived=second * wanted.size / 2.0)
        made.hear("a", replace(REPORT, at=second + 0.5, counters=arrived), CACHE_TOKENS)
    assert made.bytes_per_token.value == pytest.approx(2.0, rel=0.05)


def test_a_router_that_has_sent_nothing_learns_nothing_from_the_requests_of_others() -> None:
    made = router("a")
    for second in range(1, 60):
        arrived = Counters(prompt_tokens_arrived=10_000.0 * second)
        made.hear("a", replace(REPORT, at=float(second), counters=arrived), CACHE_TOKENS)
    assert made.bytes_per_token.value == GUESSED_BYTES_PER_TOKEN


def test_a_full_replica_gets_no_request_until_its_next_report() -> None:
    made = router("a", "b")
    made.refused("a")
    made.refused("nobody")
    assert {pick(made, prompt(1000 * i, 4), ends=True) for i in range(4)} == {"b"}
    made.refused("b")
    assert made.pick(1, prompt(0, 4), 0.0) is None
    made.hear("a", replace(REPORT, at=1.0), CACHE_TOKENS)
    assert pick(made, prompt(0, 4), 1.0) == "a"


def test_replicas_that_have_loaded_the_adapter_go_first() -> None:
    made = router("a")
    made.hear("b", REPORT, CACHE_TOKENS, adapters=["french"])
    french = replace(prompt(0, 4), adapter="french")
    assert {pick(made, french) for _ in range(9)} == {"b"}
    made.drain("b")
    assert pick(made, french) == "a"


def test_a_replica_that_would_begin_too_late_is_not_chosen() -> None:
    made = router("a")
    pick(made, prompt(0, 400))
    assert made.choose(prompt(1000, 4), 0.0, most_wait=1.0) is None
    assert made.choose(prompt(1000, 4), 0.0, most_wait=9.0) is not None


def reported(at: float, waiting: int, queued: float, left: float) -> Snapshot:
    return replace(
        REPORT, at=at, waiting=waiting, queued_prompt_tokens=queued, left_prompt_tokens=left
    )


def test_the_work_ahead_is_corrected_by_the_prompt_tokens_that_a_replica_reports() -> None:
    made = router("a")
    for number in range(3):
        made.pick(number, prompt(1000 * number, 100), 0.0)
    replica = made.replicas["a"]
    assert replica._waiting_tokens == pytest.approx(3 * 25_600)
    made.hear("a", reported(0.5, waiting=2, queued=100_000, left=104_000), CACHE_TOKENS)
    assert replica._waiting_tokens == pytest.approx(104_000)
    assert [each.uncached for each in replica.waiting.values()] == [4_000, 50_000, 50_000]


def test_prompts_of_other_routers_do_not_lengthen_those_of_this_router() -> None:
    made = router("a")
    made.pick(1, prompt(0, 100), 0.0)
    made.hear("a", reported(0.5, waiting=4, queued=102_400, left=102_400), CACHE_TOKENS)
    assert made.replicas["a"]._waiting_tokens == pytest.approx(25_600)
    assert made.replicas["a"].requests == 4
    assert made.replicas["a"].wait_of(1.0, 0.5).start == pytest.approx(102_400 * 55e-6, rel=0.15)


def test_a_late_report_does_not_count_what_has_started_since() -> None:
    made = router("a")
    for number in range(3):
        made.pick(number, prompt(1000 * number, 100), 0.0)
    made.started(0, 2.0)
    made.hear("a", reported(1.0, waiting=2, queued=51_200, left=60_000), CACHE_TOKENS)
    replica = made.replicas["a"]
    assert replica._waiting_tokens == pytest.approx(51_200)
    assert replica.requests == 3


def test_a_late_report_does_not_count_what_has_ended_since_as_requests_of_others() -> None:
    made = router("a")
    for number in range(3):
        made.pick(number, prompt(1000 * number, 4), 0.0)
        made.started(number, 0.5)
    made.ended(0, 2.0)
    made.hear("a", replace(REPORT, at=1.0, running=3), CACHE_TOKENS)
    assert made.replicas["a"].requests == 2
    made.hear("a", replace(REPORT, at=3.0, running=3), CACHE_TOKENS)
    assert made.replicas["a"].requests == 3


def test_what_a_replica_has_cached_is_compared_with_promises_up_to_the_same_time() -> None:
    made = router("a")
    pick(made, prompt(0, 40), ends=True)
    for second in range(1, 40):
        pick(made, prompt(0, 40), float(second), ends=True)
        cached = Counters(prompt_tokens_cached=10_240.0 * max(0, second - 5))
        made.hear("a", replace(REPORT, at=second - 4.5, counters=cached), CACHE_TOKENS)
    assert made.replicas["a"].trust.value == pytest.approx(1.0, abs=0.1)


def test_requests_of_others_count_as_load() -> None:
    made = router("a", "b")
    made.hear("a", replace(REPORT, at=1.0, running=50, kv_tokens=300_000.0), CACHE_TOKENS)
    assert {pick(made, prompt(1000 * i, 4), 1.0, ends=True) for i in range(4)} == {"b"}


def test_the_expected_time_grows_with_the_queue_and_falls_as_it_is_computed() -> None:
    made = router("a")
    picks = [
        made.pick(number, prompt(1000 * number, 100), now)
        for number, now in ((1, 0.0), (2, 0.0), (3, 1.0))
    ]
    alone = 25_600 * (50e-6 + 0.01 / 2048)
    expected = [alone, 2 * alone, 3 * alone - 1.0]
    assert [each.seconds for each in picks if each] == pytest.approx(expected, rel=0.15)


def test_a_full_kv_cache_delays_a_request_until_sequences_have_finished() -> None:
    made = router("a", "b")
    lengths = tuple(10.0 if bucket == 11 else 0.0 for bucket in range(LENGTH_BUCKETS))
    answers = Counters(answer_lengths=lengths, answer_tokens=20_000.0)
    full = replace(REPORT, running=4, kv_tokens=399_000.0, counters=answers)
    made.hear("a", full, CACHE_TOKENS)
    made.hear("b", replace(full, kv_tokens=200_000.0), CACHE_TOKENS)
    a, b = (made.replicas[each].wait_of(100_000, 0.0).first_token for each in ("a", "b"))
    assert b + 4 < a < b + 12


def test_an_index_keeps_the_beginning_of_a_prompt_longest() -> None:
    index = PrefixIndex(10)
    index.add(range(8))
    index.add(range(100, 106))
    assert len(index) == 10
    assert index.matched(range(8)) == 4


def test_the_indexes_of_all_replicas_are_bounded_together() -> None:
    made = Router(MODEL)
    for i in range(50):
        made.hear(f"replica-{i}", replace(REPORT, kv_capacity_tokens=1e12), 1e12)
    for i in range(50):
        made.hear(f"replica-{i}", replace(REPORT, at=1.0), 1e12)
    assert sum(each.index.capacity for each in made.replicas.values()) <= MOST_BLOCKS


def test_nothing_is_kept_of_a_request_that_has_ended() -> None:
    made = router("a", "b")
    for number in range(100):
        made.pick(number, prompt(1000 * number, 4), 0.0)
        if number % 2:
            made.started(number, 0.1)
        made.ended(number, 0.2)
    assert made._where == {}
    for each in made.replicas.values():
        assert each.requests == 0
        assert each._waiting_tokens == pytest.approx(0.0)


def test_events_of_unknown_requests_and_removed_replicas_do_nothing() -> None:
    made = router("a")
    made.pick(1, prompt(0, 4), 0.0)
    made.remove("a")
    made.drain("a")
    made.started(1, 0.5)
    made.ended(1, 0.5)
    made.ended(2, 0.5)
    assert made.pick(3, prompt(0, 4), 0.0) is None


def test_a_ratio_moves_from_its_guess_to_the_evidence_and_forgets_old_evidence() -> None:
    ratio = FadingRatio(guess=4.0, weight=10.0, memory=100.0)
    assert ratio.value == 4.0
    for _ in range(50):
        ratio.add(20.0, 10.0)
    assert ratio.value == pytest.approx(2.0, rel=0.2)
    for _ in range(200):
        ratio.add(80.0, 10.0)
    assert ratio.value == pytest.approx(8.0, rel=0.2)
    with pytest.raises(ValueError, match="cannot be negative"):
        ratio.add(1.0, -1.0)

"""Tests of the expected lengths of answers."""

from dataclasses import replace

import pytest

from llmservice_operator.routing.answers import MOST_SOURCES, NO_SOURCE, AnswerLengths, source_of
from llmservice_operator.routing.prompts import Prompt
from llmservice_operator.routing.router import Router
from llmservice_operator.scaling.signals import Counters
from llmservice_operator.scaling.step_model import StepModel
from operator_support.replica_reports import CACHE_TOKENS, MODEL, REPORT
from operator_support.scaling import step_sums

CHAT = "/v1/chat/completions"
STEP_SECONDS = 0.02


def router() -> Router:
    """Return a router whose replica has run 50 steps with 4 sequences."""
    made = Router(MODEL)
    made.hear("a", REPORT, CACHE_TOKENS)
    steps = step_sums([(0.0, 4.0, 2000.0)] * 50, StepModel(STEP_SECONDS, 0.0, 0.0, 0.0))
    made.hear("a", replace(REPORT, at=1.0, counters=Counters(steps=steps)), CACHE_TOKENS)
    return made


def answer(made: Router, number: int, source: int, seconds: float) -> float:
    """Serve a request whose answer takes some seconds. Return the length that was expected."""
    pick = made.pick(number, Prompt((), 1000, source=source), 1.0)
    assert pick is not None
    made.started(number, 1.5)
    made.ended(number, 1.5 + seconds)
    return pick.dispatch.answer


def test_the_key_and_the_route_determine_the_source() -> None:
    assert source_of("key", CHAT) == source_of("key", CHAT)
    assert len({source_of(*each) for each in (("key", CHAT), ("other", CHAT), ("key", "/x"))}) == 3


def test_the_expected_length_moves_from_the_mean_to_the_answers_of_the_source() -> None:
    answers = AnswerLengths()
    assert answers.expected(1, 200.0) == 200.0
    answers.add(1, 1000.0)
    assert 200.0 < answers.expected(1, 200.0) < 500.0
    for _ in range(100):
        answers.add(1, 1000.0)
    assert answers.expected(1, 200.0) == pytest.approx(1000.0, rel=0.05)
    assert answers.expected(2, 200.0) == 200.0
    for _ in range(1000):
        answers.add(1, 10.0)
    assert answers.expected(1, 200.0) == pytest.approx(10.0, abs=10.0)


def test_nothing_is_learned_of_a_request_without_a_source() -> None:
    answers = AnswerLengths()
    answers.add(NO_SOURCE, 1000.0)
    assert len(answers) == 0
    assert answers.expected(NO_SOURCE, 200.0) == 200.0


def test_the_source_without_recent_answers_is_forgotten_first() -> None:
    answers = AnswerLengths()
    for source in range(1, 2 * MOST_SOURCES):
        answers.add(source, 10.0)
        answers.add(1, 10.0)
    assert len(answers) == MOST_SOURCES
    assert answers.expected(1, 200.0) < 100.0
    assert answers.expected(2, 200.0) == 200.0


def test_the_greater_evidence_about_a_source_is_adopted() -> None:
    mine, other = AnswerLengths(), AnswerLengths()
    for _ in range(10):
        mine.add(1, 100.0)
        other.add(2, 300.0)
    mine.add(2, 1.0)
    other.add(1, 1.0)
    mine.adopt(other.evidence())
    other.adopt(mine.evidence())
    assert [mine.expected(each, 0.0) for each in (1, 2)] == pytest.approx([71.4, 214.3], rel=0.1)
    assert dict(mine.evidence()) == dict(other.evidence())


def test_a_router_learns_the_answers_of_each_source_from_their_duration() -> None:
    made = router()
    for number in range(40):
        answer(made, 2 * number, 1, seconds=800 * STEP_SECONDS)
        answer(made, 2 * number + 1, 2, seconds=10 * STEP_SECONDS)
    assert answer(made, 100, 1, 0.0) == pytest.approx(800, rel=0.15)
    assert answer(made, 101, 2, 0.0) == pytest.approx(10, abs=25)
    assert answer(made, 102, 3, 0.0) == 200


def test_a_request_that_ends_before_its_first_token_tells_nothing_about_answers() -> None:
    made = router()
    made.pick(1, Prompt((), 1000, source=1), 1.0)
    made.ended(1, 9.0)
    assert len(made.answers) == 0


def test_a_long_answer_is_sent_to_the_replica_with_fewer_requests() -> None:
    """A short answer is sent to the replica with the shorter queue, although it has more to do."""
    made = router()
    for _ in range(100):
        made.answers.add(1, 2000.0)
        made.answers.add(2, 1.0)
    made.hear("b", replace(REPORT, at=1.0, running=60), CACHE_TOKENS)
    made.hear("a", replace(REPORT, at=2.0, waiting=4, queued_prompt_tokens=2000.0), CACHE_TOKENS)
    chosen = [made.choose(Prompt((), 1000, source=source), 2.0) for source in (1, 2)]
    assert [each and each.replica for each in chosen] == ["a", "b"]

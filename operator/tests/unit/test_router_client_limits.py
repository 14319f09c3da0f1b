"""Tests what a request reserves, what becomes of it, and what the client is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from llmservice_operator.router.admission import Client, Refusal
from llmservice_operator.router.bodies import NO_BODY, Body, read_body
from llmservice_operator.router.chooser import Chooser, Chosen
from llmservice_operator.router.client_limits import (
    PROMPT_MARGIN,
    TEMPLATE_TOKENS,
    ClientLimits,
    limiter_of,
)
from llmservice_operator.router.picker_metrics import PickerMetrics
from llmservice_operator.router.replica_view import ReplicaView
from llmservice_operator.router_settings import ClientLimits as Limit
from llmservice_operator.router_settings import LimitsOfClients
from llmservice_operator.routing.holding import Holding
from llmservice_operator.routing.replica import GUESSED_ANSWERS, GUESSED_PACE
from llmservice_operator.routing.router import GUESSED_BYTES_PER_TOKEN, Router
from llmservice_operator.routing.settlements import Reservation
from operator_support.replica_reports import MODEL, REPORT

CHAT = "/v1/chat/completions"
CLIENT = Client("team", "digest")
BODY = read_body(b'{"prompt": "%b", "max_tokens": 100}' % (b"a" * 1200))
PROMPT_TOKENS = BODY.prompt.size / GUESSED_BYTES_PER_TOKEN
RESERVED = PROMPT_MARGIN * PROMPT_TOKENS + TEMPLATE_TOKENS + 100


@dataclass
class Door:
    """The limits in front of two replicas."""

    default: Limit = field(default_factory=lambda: Limit(requests=10, tokens=1000, concurrent=3))
    now: float = 100.0

    def __post_init__(self) -> None:
        settings = LimitsOfClients(default=self.default, keys={"free": Limit()})
        self.chooser = Chooser(Holding(Router(MODEL)), clock=lambda: self.now)
        self.chooser.limiter = limiter_of(settings)
        self.limits = ClientLimits(self.chooser.limiter, self.chooser, PickerMetrics())
        self.report({})

    def report(self, tokens: Mapping[str, float]) -> None:
        report = replace(REPORT, at=self.now)
        self.chooser.update(
            [
                ReplicaView("a", "10.0.0.1:8000", False, report, 1e6, key_tokens=tokens),
                ReplicaView("b", "10.0.0.2:8000", False, report, 1e6, key_tokens={}),
            ]
        )

    def admit(self, body: Body = BODY, path: str = CHAT, client: Client = CLIENT) -> Reservation:
        found = self.limits.admit(client, path, body)
        assert isinstance(found, Reservation)
        return found

    def send(self, reservation: Reservation) -> Chosen:
        chosen = self.chooser.choose_now(BODY.prompt)
        assert chosen is not None
        self.limits.sent(reservation, chosen)
        return chosen

    @property
    def used(self) -> int:
        return 1000 - int(self.limits.headers(CLIENT)["x-ratelimit-remaining-tokens"])


def test_a_request_reserves_its_prompt_and_its_longest_answer() -> None:
    door = Door()
    assert door.admit().tokens == pytest.approx(RESERVED, abs=1)


@pytest.mark.parametrize(
    ("content", "path", "answer"),
    [
        (b'{"n": 2}', CHAT, 2 * GUESSED_ANSWERS.mean),
        (b'{"max_tokens": 50}', "/v1/embeddings", 0),
        (b'{"max_tokens": 50}', "/generate", 50),
        (b"--boundary\r\n" + b"a" * 10_000, "/v1/audio/transcriptions", GUESSED_ANSWERS.mean),
    ],
)
def test_an_answer_without_a_limit_counts_with_its_expected_length(
    content: bytes, path: str, answer: float
) -> None:
    assert Door().admit(read_body(content), path).tokens == answer


def test_a_client_is_told_what_is_left_and_when_it_is_whole_again() -> None:
    door = Door()
    door.admit()
    assert door.limits.headers(CLIENT) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "61s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": str(1000 - int(RESERVED + 0.999)),
        "x-ratelimit-reset-tokens": "61s",
    }
    assert door.limits.headers(Client("free")) == {}


def test_a_client_above_its_limit_is_told_when_to_try_again() -> None:
    door = Door(Limit(requests=1))
    door.admit()
    door.now += 20
    refusal = door.limits.admit(CLIENT, CHAT, BODY)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.outcome) == (429, "rate_limited")
    assert refusal.headers["retry-after"] == "41"
    assert "1 requests per minute; try again in 41 s" in refusal.message
    assert door.limits.refusal(CLIENT) == refusal
    door.admit(client=Client("free"))


def test_a_request_that_can_never_fit_is_not_to_be_repeated() -> None:
    refusal = Door().limits.admit(CLIENT, CHAT, BODY._replace(answer_tokens=1000))
    assert isinstance(refusal, Refusal)
    assert refusal.headers["x-should-retry"] == "false"
    assert "retry-after" not in refusal.headers
    assert "lower max_tokens" in refusal.message


def test_a_client_with_too_many_requests_waits_for_the_end_of_one() -> None:
    door = Door(Limit(concurrent=1))
    first = door.admit(NO_BODY)
    refusal = door.limits.refusal(CLIENT)
    assert refusal is not None
    assert refusal.headers == {"retry-after": "1"}
    door.limits.cancel(first)
    door.admit()


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_counters_of_the_replica_replace_the_reservation(is_stream: bool) -> None:
    door = Door()
    reserved = door.admit()
    chosen = door.send(reserved)
    door.limits.answered(reserved, chosen, chosen.addresses[0])
    door.limits.end(reserved, chosen, door.now - 0.1, is_whole=not is_stream)
    assert door.used == pytest.approx(RESERVED, abs=1)
    door.now += 2
    door.report({"team": 320})
    assert door.used == 320


def test_an_answer_of_a_second_replica_is_settled_there() -> None:
    door = Door()
    reserved = door.admit()
    chosen = door.send(reserved)
    assert chosen.replica == "a"
    door.limits.answered(reserved, chosen, chosen.addresses[1])
    door.limits.end(reserved, chosen, door.now, is_whole=True)
    door.now += 2
    door.report({"team": 320})
    # 320 tokens of another request, and none at the second replica.
    assert door.used == 320


@pytest.mark.parametrize(("begun", "decoded"), [(True, 1 + GUESSED_PACE), (False, 0.0)])
def test_a_client_that_leaves_pays_for_what_was_computed(begun: bool, decoded: float) -> None:
    door = Door()
    reserved = door.admit()
    chosen = door.send(reserved)
    started = door.now
    door.now += 1 if begun else 0
    door.limits.end(reserved, chosen, started if begun else None, is_whole=False)
    door.now += 2
    door.report({})
    assert door.used == pytest.approx(PROMPT_TOKENS + decoded, abs=1)


def test_a_request_that_waited_in_the_forwarder_is_counted_by_its_replica_alone() -> None:
    door = Door()
    door.limits.end_forwarded(door.admit())
    assert door.used == 0
    door.now += 2
    door.report({"team": 320})
    assert door.used == 320

"""Tests of a router that follows another one, or that begins with a copy of it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

import pytest

from llmservice_operator.routing import handover
from llmservice_operator.routing.handover import (
    Cached,
    Ended,
    Message,
    OpenRequest,
    OtherRouter,
    Sent,
    Started,
    copy_of,
    sent,
)
from llmservice_operator.routing.owners import Owners
from llmservice_operator.routing.prefixes import BLOCK_BYTES
from llmservice_operator.routing.prompts import Prompt
from llmservice_operator.routing.replica import Dispatch
from llmservice_operator.routing.router import Choice, Router
from llmservice_operator.scaling.signals import Counters, Snapshot
from operator_support.replica_reports import MODEL, REPORT
from operator_support.scaling import step_sums

NAMES = ("a", "b", "c", "d")
CONVERSATIONS = 30
CACHE_TOKENS = 150_000.0
BYTES_PER_TOKEN = 6
STEPS = step_sums([(0.0, 9.0, 2e4), (500.0, 20.0, 3e4), (1000.0, 5.0, 9e4), (0.0, 60.0, 8e4)])


def prompt(conversation: int, blocks: int) -> Prompt:
    first = 1000 * conversation
    return Prompt(tuple(range(first, first + blocks)), blocks * BLOCK_BYTES)


def other(router: Router) -> OtherRouter:
    """Another router, as `router` sees it."""
    return OtherRouter(router, Owners(), count(-1, -1))


@dataclass
class Service:
    """A router that serves conversations with replicas whose steps take longer than its prior."""

    router: Router = field(default_factory=lambda: Router(MODEL))
    followers: list[OtherRouter] = field(default_factory=list)
    running: dict[int, str] = field(default_factory=dict)
    """Replica of each request in progress."""
    now: float = 0.0
    _counters: dict[str, Counters] = field(default_factory=lambda: dict.fromkeys(NAMES, Counters()))
    _numbers: Iterator[int] = field(default_factory=count)
    _random: random.Random = field(default_factory=lambda: random.Random(1))

    def reports(self) -> list[tuple[str, Snapshot]]:
        return [
            (
                name,
                replace(
                    REPORT,
                    at=self.now,
                    counters=self._counters[name],
                    running=sum(each == name for each in self.running.values()),
                ),
            )
            for name in NAMES
        ]

    def report_to(self, *routers: Router) -> None:
        for name, report in self.reports():
            for router in routers:
                router.hear(name, report, CACHE_TOKENS)

    def serve(self, seconds: int) -> None:
        """Serve 20 requests a second. Each replica reports once a second."""
        for _ in range(seconds):
            self.report_to(self.router, *(each.router for each in self.followers))
            for _ in range(20):
                self.now += 0.05
                self._serve_one()
            for name, counted in self._counters.items():
                self._counters[name] = replace(counted, steps=counted.steps.plus(STEPS))

    def _serve_one(self) -> None:
        wanted = prompt(self._random.randrange(CONVERSATIONS), self._random.randrange(20, 200))
        number = next(self._numbers)
        pick = self.router.pick(number, wanted, self.now)
        assert pick is not None
        self._tell(sent(number, wanted, pick))
        tokens = wanted.size / BYTES_PER_TOKEN
        counted = Counters(prompt_tokens_arrived=tokens, prompt_tokens_cached=tokens / 2)
        self._counters[pick.replica] = self._counters[pick.replica].plus(counted)
        self.running[number] = pick.replica
        self.router.started(number, self.now)
        self._tell(Started(number))
        if len(self.running) > 40:
            ended = self._random.choice(list(self.running))
            del self.running[ended]
            self.router.ended(ended, self.now)
            self._tell(Ended(ended))

    def _tell(self, message: Message) -> None:
        for each in self.followers:
            each.apply(message, self.now)

    def choices(self, router: Router) -> list[Choice | None]:
        """Return the choices of a router for prompts with and without a known prefix."""
        prompts = [prompt(number, 100) for number in range(2 * CONVERSATIONS)]
        return [router.choose(each, self.now) for each in prompts]


def copied(service: Service, source: Router, target: Router) -> OtherRouter:
    source_in_target = other(target)
    for message in copy_of(source, Owners(), service.now):
        source_in_target.apply(message, service.now)
    return source_in_target


def test_a_router_that_follows_another_one_makes_the_same_choices() -> None:
    service, follower = Service(), Router(MODEL)
    service.followers.append(other(follower))
    service.serve(20)
    chosen = service.choices(service.router)
    assert service.choices(follower) == chosen
    assert len({each.replica for each in chosen if each}) > 1
    service.followers.clear()
    service.serve(5)
    assert service.choices(follower) != service.choices(service.router)


def test_a_router_with_a_copy_makes_the_same_choices_and_can_follow_from_then_on() -> None:
    service, new = Service(), Router(MODEL)
    for _ in range(20):
        service.serve(1)
        # The new router also hears of the requests that it does not know.
        service.report_to(service.router, new)
    assert service.choices(new) != service.choices(service.router)
    service.followers.append(copied(service, service.router, new))
    expected = service.choices(service.router)
    assert [each and each.replica for each in service.choices(new)] == [
        each and each.replica for each in expected
    ]
    for mine, its in zip(service.choices(new), expected, strict=True):
        assert mine
        assert its
        # The room of a cache is a whole number of blocks, so a block may be missing.
        assert mine.dispatch == pytest.approx(its.dispatch, abs=2 * BLOCK_BYTES / BYTES_PER_TOKEN)
        assert mine.wait == pytest.approx(its.wait, rel=0.1)
    service.serve(5)
    replicas = [each and each.replica for each in service.choices(new)]
    assert replicas == [each and each.replica for each in service.choices(service.router)]


def test_a_copy_contains_what_was_learned_and_each_request_once() -> None:
    service, new = Service(), Router(MODEL)
    service.serve(10)
    service.report_to(service.router, new)
    copied(service, service.router, new)
    assert new.learned(service.now) == service.router.learned(service.now)
    for name, replica in service.router.replicas.items():
        copy = new.replicas[name]
        assert (copy.trust, copy.fit.model) == (replica.trust, replica.fit.model)
        assert (copy.requests, copy.own_requests) == (replica.requests, replica.own_requests)


def test_a_copy_that_comes_back_changes_nothing() -> None:
    service, new = Service(), Router(MODEL)
    service.serve(10)
    service.report_to(service.router, new)
    copied(service, service.router, new)
    expected = service.choices(service.router)
    copied(service, new, service.router)
    assert service.choices(service.router) == expected


def test_a_copy_of_a_router_that_knows_less_takes_nothing_away() -> None:
    service, new = Service(), Router(MODEL)
    service.serve(10)
    service.report_to(service.router, new)
    expected = service.choices(service.router)
    copied(service, new, service.router)
    assert service.choices(service.router) == expected


def test_the_requests_of_a_router_that_is_gone_count_as_long_as_replicas_report_them() -> None:
    service, follower = Service(), Router(MODEL)
    leader = other(follower)
    service.followers.append(leader)
    service.serve(5)
    service.report_to(service.router, follower)
    requests = {name: each.requests for name, each in service.router.replicas.items()}
    leader.leave()
    assert {name: each.requests for name, each in follower.replicas.items()} == requests
    assert sum(each.own_requests for each in follower.replicas.values()) == 0
    service.running.clear()
    service.report_to(follower)
    assert sum(each.requests for each in follower.replicas.values()) == 0


def test_a_router_passes_on_only_its_own_requests() -> None:
    service, follower = Service(), Router(MODEL)
    service.followers.append(other(follower))
    service.serve(3)
    kinds = {type(message) for message in copy_of(follower, Owners(), service.now)}
    assert OpenRequest not in kinds
    assert Cached in kinds
    own = [
        each.number
        for each in copy_of(service.router, Owners(), 0.0)
        if isinstance(each, OpenRequest)
    ]
    assert sorted(own) == sorted(service.running)


def test_the_cache_of_an_earlier_process_of_a_replica_is_not_copied() -> None:
    service, new = Service(), Router(MODEL)
    service.serve(3)
    for name, report in service.reports():
        new.hear(name, replace(report, started=5.0), CACHE_TOKENS)
    copied(service, service.router, new)
    assert [len(each.index) for each in new.replicas.values()] == [0, 0, 0, 0]


def test_messages_about_unknown_replicas_and_requests_are_ignored() -> None:
    service, new = Service(), Router(MODEL)
    service.serve(3)
    follower = copied(service, service.router, new)
    for message in (Started(7000), Ended(7000), Sent(1, "b", Dispatch(0, 9, 2, 0, 2), b"")):
        follower.apply(message, service.now)
    assert new.replicas == {}


def test_the_requests_of_another_router_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "MOST_FOLLOWED", 10)
    router = Router(MODEL)
    router.hear("a", REPORT, CACHE_TOKENS)
    follower = other(router)
    for number in range(100):
        follower.apply(Sent(number, "a", Dispatch(0.0, 9, 2.0, 0.0, 2.0), b""), 1.0)
    assert router.replicas["a"].own_requests == 10
    follower.leave()
    assert router.replicas["a"].own_requests == 0


def test_a_copy_contains_the_replicas_of_stored_responses() -> None:
    known, new = Owners(), Owners()
    for number in range(3000):
        known.note(f"response-{number}", NAMES[number % 3])
    router = Router(MODEL)
    follower = OtherRouter(router, new, count(-1, -1))
    for message in copy_of(router, known, 0.0):
        follower.apply(message, 0.0)
    found = [new.find(f"response-{number}") for number in range(3000)]
    assert found == [NAMES[number % 3] for number in range(3000)]

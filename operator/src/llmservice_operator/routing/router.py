"""Chooses the replica of each request, and follows the request to its end."""

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple

from llmservice_operator.routing.answers import AnswerLengths
from llmservice_operator.routing.prefixes import BLOCK_BYTES, PrefixIndex
from llmservice_operator.routing.prompts import Prompt
from llmservice_operator.routing.ratios import Evidence, FadingRate, FadingRatio
from llmservice_operator.routing.replica import Dispatch, Replica, Wait
from llmservice_operator.scaling.signals import Snapshot
from llmservice_operator.scaling.step_model import StepModel

MOST_UTILIZATION: Final = 0.97
"""Maximum utilization in the weight of a prompt's seconds. Without it, the weight would have no
bound near the capacity of a service."""
RATE_SECONDS: Final = 30.0
"""Time in seconds over which the utilization is measured."""

DECODE_WEIGHT: Final = 0.3
"""Weight of the total seconds by which an answer delays the other requests of the replica. Most of
these requests have their first token already, so a second weighs less for them than for a request
that still waits for its first token."""

DEFAULT_TTFT_SECONDS: Final = 2.0
GUESSED_BYTES_PER_TOKEN: Final = 4.0
RATIO_WEIGHT_TOKENS: Final = 20_000.0
RATIO_MEMORY_TOKENS: Final = 1_000_000.0
MOST_BLOCKS: Final = 400_000
"""Maximum number of blocks that the indexes of all replicas contain together."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A replica for a request."""

    replica: str
    seconds: float | None
    """Expected seconds until the first token. None if no replica has reported recently."""
    dispatch: Dispatch


class Choice(NamedTuple):
    """A replica to which a request may be sent."""

    replica: str
    dispatch: Dispatch
    wait: Wait | None
    """Expected wait. None if no replica has reported recently."""
    prompt_seconds: float = 0.0
    """Seconds that the prompt takes the engine."""

    def starts_within(self, seconds: float) -> bool:
        return self.wait is None or self.wait.start <= seconds


class Learned(NamedTuple):
    """What a router has learned about all replicas together."""

    bytes_per_token: Evidence
    work: Evidence
    sent: Evidence
    answers: tuple[tuple[int, Evidence], ...] = ()


@dataclass
class Router:
    """Routes the requests of one service."""

    prior: StepModel
    """Step model of a replica that has not reported steps yet."""
    ttft_seconds: float = DEFAULT_TTFT_SECONDS
    """Limit of the time until the first token, from the service's SLO."""
    replicas: dict[str, Replica] = field(default_factory=dict)
    bytes_per_token: FadingRatio = field(
        default_factory=lambda: FadingRatio(
            GUESSED_BYTES_PER_TOKEN, RATIO_WEIGHT_TOKENS, RATIO_MEMORY_TOKENS
        )
    )
    answers: AnswerLengths = field(default_factory=AnswerLengths)
    _where: dict[int, str] = field(default_factory=dict)
    """Replica of each request in progress, by the request's number."""
    _work: FadingRate = field(default_factory=lambda: FadingRate(RATE_SECONDS))
    """Seconds of work of the requests that were sent, per second."""
    _sent: FadingRate = field(default_factory=lambda: FadingRate(RATE_SECONDS))
    """Requests that were sent, per second."""

    def hear(
        self, name: str, report: Snapshot, cache_tokens: float, adapters: Collection[str] = ()
    ) -> None:
        """Process a report of a replica.

        The replica's cache contains at most `cache_tokens`, and the replica has loaded `adapters`.
        """
        replica = self.replicas.get(name)
        if replica is None:
            replica = self.replicas[name] = Replica(self.prior, PrefixIndex(0))
        blocks = cache_tokens * self.bytes_per_token.value / BLOCK_BYTES
        replica.index.capacity = int(min(blocks, MOST_BLOCKS / len(self.replicas)))
        replica.adapters, replica.is_full = frozenset(adapters), False
        arrived = replica.hear(report)
        # Before a router has sent anything, the prompts in a report are those of other routers.
        if arrived.tokens > 0 and arrived.sent_bytes > 0:
            self.bytes_per_token.add(arrived.sent_bytes, arrived.tokens)

    def drain(self, name: str) -> None:
        """Send the replica no further requests."""
        if name in self.replicas:
            self.replicas[name].is_draining = True

    def refused(self, name: str) -> None:
        """Note that a replica refused a request because it is full. It gets no further request
        until its next report.
        """
        if name in self.replicas:
            self.replicas[name].is_full = True

    def remove(self, name: str) -> None:
        """Forget a replica that has ended, with everything that its cache contained."""
        self.replicas.pop(name, None)

    def pick(
        self, number: int, prompt: Prompt, now: float, among: Container[str] | None = None
    ) -> Pick | None:
        """Choose a replica for a request, and count the request there. None if there is no open
        replica, or none `among` these.
        """
        choice = self.choose(prompt, now, among=among)
        return None if choice is None else self.send(number, prompt, choice)

    def choose(
        self,
        prompt: Prompt,
        now: float,
        most_wait: float = inf,
        among: Container[str] | None = None,
    ) -> Choice | None:
        """Return the replica with the least cost for a request, without counting the request.

        The cost is the expected seconds until the first token, plus the delay that the request
        causes to others. If open replicas have loaded the prompt's adapter, only these are
        considered. If no considered replica has reported recently, the one with the fewest requests
        from this router is chosen. With `among`, no other replicas are considered. None if no
        considered replica is open, or if none would begin with the prompt within `most_wait`
        seconds.
        """
        open_ = {
            name: each
            for name, each in self.replicas.items()
            if each.is_open and (among is None or name in among)
        }
        if any(prompt.adapter in each.adapters for each in open_.values()):
            open_ = {n: each for n, each in open_.items() if prompt.adapter in each.adapters}
        fresh = {name: each for name, each in open_.items() if each.is_fresh(now)}
        if not fresh:
            return self._least_requests(prompt, open_, now)
        choices = [self._choice(name, each, prompt, now) for name, each in fresh.items()]
        delayed = self._delayed_requests(len(choices), now)
        least = min(choice.dispatch.uncached for choice in choices)
        costs = [
            (
                self._cost(choice, least, delayed),
                fresh[choice.replica].requests,
                choice.replica,
                choice,
            )
            for choice in choices
            if choice.starts_within(most_wait)
        ]
        return min(costs, key=lambda each: each[:3])[3] if costs else None

    def choose_owner(self, name: str, prompt: Prompt, now: float) -> Choice | None:
        """Return the replica that keeps an object, for a request that needs this object.

        The request is not counted. A replica that is full is returned too, because no other replica
        has the object. None if the replica drains or is not known.
        """
        replica = self.replicas.get(name)
        if replica is None or replica.is_draining:
            return None
        if not replica.is_fresh(now):
            return self._least_requests(prompt, {name: replica}, now)
        return self._choice(name, replica, prompt, now)

    def has_free(self, now: float, most_wait: float) -> bool:
        """Whether a replica would begin with a prompt within `most_wait` seconds."""
        replicas = [each for each in self.replicas.values() if each.is_open]
        fresh = [each for each in replicas if each.is_fresh(now)]
        if not fresh:
            return bool(replicas)
        return any(each.wait_of(1.0, now).start <= most_wait for each in fresh)

    def send(self, number: int, prompt: Prompt, choice: Choice) -> Pick:
        """Count a request at the replica that was chosen for it."""
        name, dispatch, wait, _ = choice
        replica = self.replicas[name]
        replica.send(number, dispatch)
        replica.index.add(prompt.chain)
        self._where[number] = name
        self._sent.add(1.0, dispatch.sent)
        self._work.add(self.seconds_of(choice), dispatch.sent)
        return Pick(name, None if wait is None else wait.first_token, dispatch)

    def seconds_of(self, choice: Choice) -> float:
        """Return the seconds of work of a request in the replica that was chosen for it."""
        answer = self.replicas[choice.replica].seconds_of_answer(choice.dispatch)
        return choice.prompt_seconds + answer

    def _delayed_requests(self, replicas: int, now: float) -> float:
        """Return how many later requests one more second of work delays in a replica, for each
        second of work that is ahead there.

        The work ahead and the work that arrives meanwhile end after wait / (1 - utilization)
        seconds, and every request that reaches the replica until then starts later.
        """
        utilization = min(self._work.value(now) / replicas, MOST_UTILIZATION)
        return self._sent.value(now) / replicas / (1 - utilization)

    def _cost(self, choice: Choice, least: float, delayed: float) -> float:
        """Return the cost of a request in a replica, in seconds of waiting.

        `least` is the number of uncached prompt tokens in the replica that has the longest prefix.
        The replica is charged for the tokens that it computes in addition. The weight of their
        seconds grows with the wait of the replica itself. If the mean wait of all replicas
        determined it, a backlog would draw more requests to the replica that has their prefix, and
        grow without end. The weight is at least 1, because an uncached prompt also evicts what
        others have cached.
        """
        assert choice.wait is not None
        replica, dispatch = self.replicas[choice.replica], choice.dispatch
        weight = max(1.0, delayed * choice.wait.start)
        recomputed = replica.seconds_of_prompt(dispatch.uncached - least)
        decoding = replica.seconds_of_answer(dispatch) * replica.requests
        return choice.wait.first_token + weight * recomputed + DECODE_WEIGHT * decoding

    def _choice(self, name: str, replica: Replica, prompt: Prompt, now: float) -> Choice:
        ratio = self.bytes_per_token.value
        tokens = prompt.size / ratio
        saved = min(replica.index.matched(prompt.chain) * BLOCK_BYTES / ratio, tokens)
        uncached = max(tokens - saved * min(replica.trust.value, 1.0), 1.0)
        answer = self.answers.expected(prompt.source, replica.answers.mean)
        dispatch = Dispatch(now, prompt.size, tokens, saved, uncached, inf, answer, prompt.source)
        seconds = replica.seconds_of_prompt(uncached)
        return Choice(name, dispatch, replica.wait_of(uncached, now), seconds)

    def _least_requests(
        self, prompt: Prompt, replicas: Mapping[str, Replica], now: float
    ) -> Choice | None:
        if not replicas:
            return None
        name = min(replicas, key=lambda each: (replicas[each].own_requests, each))
        tokens = prompt.size / self.bytes_per_token.value
        answer = self.answers.expected(prompt.source, replicas[name].answers.mean)
        dispatch = Dispatch(now, prompt.size, tokens, 0.0, tokens, inf, answer, prompt.source)
        return Choice(name, dispatch, None)

    def started(self, number: int, now: float) -> None:
        """Note the first token of a request."""
        if (name := self._where.get(number)) in self.replicas:
            self.replicas[name].started(number, now)

    def ended(self, number: int, now: float) -> None:
        """Note the end of a request, whatever the result."""
        if (name := self._where.pop(number, "")) in self.replicas:
            replica = self.replicas[name]
            dispatch = replica.ended(number, now)
            if dispatch is not None and dispatch.started < inf:
                self.answers.add(dispatch.source, replica.answered(dispatch, now))

    def restore(self, number: int, name: str, dispatch: Dispatch) -> None:
        """Count a request that another router has sent. Call `recount` after the last one."""
        if name in self.replicas:
            self._where[number] = name
            self.replicas[name].restore(number, dispatch)

    def forget(self, number: int) -> None:
        """Stop counting a request whose end will not be noted. Call `recount` after the last one.

        While the request runs, the reports of its replica count it.
        """
        if (name := self._where.pop(number, "")) in self.replicas:
            self.replicas[name].forget(number)

    def recount(self) -> None:
        """Compare the counted requests with the last report of each replica."""
        for replica in self.replicas.values():
            replica.recount()

    def learned(self, now: float) -> Learned:
        return Learned(
            self.bytes_per_token.evidence,
            self._work.evidence(now),
            self._sent.evidence(now),
            self.answers.evidence(),
        )

    def adopt(self, learned: Learned, now: float) -> None:
        """Continue with the evidence of another router where it has more."""
        before = self.bytes_per_token.value
        self.bytes_per_token.adopt(learned.bytes_per_token)
        for replica in self.replicas.values():
            blocks = replica.index.capacity * self.bytes_per_token.value / before
            replica.index.capacity = int(min(blocks, MOST_BLOCKS / len(self.replicas)))
        self._work.adopt(learned.work, now)
        self._sent.adopt(learned.sent, now)
        self.answers.adopt(learned.answers)

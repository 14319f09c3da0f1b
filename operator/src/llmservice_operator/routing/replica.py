"""The load of one replica, from the router's own requests and from the replica's reports."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple

from llmservice_operator.routing.answers import NO_SOURCE
from llmservice_operator.routing.prefixes import PrefixIndex
from llmservice_operator.routing.ratios import FadingRatio
from llmservice_operator.scaling.lengths import lengths_of
from llmservice_operator.scaling.signals import Counters, Snapshot
from llmservice_operator.scaling.step_model import StepModel, StepModelFit

FRESH_SECONDS: Final = 10.0
"""Age in seconds at which a report ceases to describe the load. A younger report is kept up
to date with the requests that this router sends."""

MOST_AMOUNTS: Final = 10_000
TRUST_WEIGHT_TOKENS: Final = 5_000.0
TRUST_MEMORY_TOKENS: Final = 200_000.0

GUESSED_PACE: Final = 50.0
PACE_WEIGHT_SECONDS: Final = 1.0
PACE_MEMORY_SECONDS: Final = 500.0


class Dispatch(NamedTuple):
    """A request that was sent to a replica."""

    sent: float
    size: int
    """Bytes of the prompt."""
    tokens: float
    """Expected prompt tokens."""
    saved: float
    """Prompt tokens that the replica's cache contains according to the index."""
    uncached: float
    """Expected prompt tokens that the replica computes."""
    started: float = inf
    """Time of the first token."""
    answer: float = 0.0
    """Expected tokens of the answer."""
    source: int = NO_SOURCE
    """Source of the request, from which the length of the answer was learned."""

    @property
    def running_kv(self) -> float:
        """Mean number of KV tokens that a step reads for this request while it decodes."""
        return self.tokens + self.answer / 2


class Wait(NamedTuple):
    """Expected times of a new request in a replica, in seconds from now."""

    start: float
    """Time until the replica begins to compute the prompt."""
    first_token: float


class Answers(NamedTuple):
    """Lengths of the answers of a replica, in tokens."""

    mean: float
    left: float
    """Mean number of tokens that a running sequence still generates."""


GUESSED_ANSWERS: Final = Answers(mean=200.0, left=100.0)


class Arrived(NamedTuple):
    """Prompts that reached a replica between two reports."""

    sent_bytes: float
    tokens: float


class _Later:
    """Amounts, each with its time, that no report describes yet. If there are too many, the oldest
    ones are forgotten.
    """

    def __init__(self) -> None:
        self._amounts: deque[tuple[float, float]] = deque(maxlen=MOST_AMOUNTS)

    def add(self, at: float, amount: float) -> None:
        self._amounts.append((at, amount))

    def until(self, at: float) -> float:
        """Remove the amounts up to a time, and return their sum."""
        total = 0.0
        while self._amounts and self._amounts[0][0] <= at:
            total += self._amounts.popleft()[1]
        return total


@dataclass
class Replica:
    """The requests ahead of a new one in a replica, and the time that they take."""

    prior: StepModel
    index: PrefixIndex
    is_draining: bool = False
    is_full: bool = False
    """Whether the replica refused a request since its last report."""
    adapters: frozenset[str] = frozenset()
    """Adapters that the replica has loaded."""
    report: Snapshot | None = None
    """Last report."""
    waiting: dict[int, Dispatch] = field(default_factory=dict)
    """Requests without a first token, in the order in which they were sent."""
    running: dict[int, Dispatch] = field(default_factory=dict)
    fit: StepModelFit = field(init=False)
    answers: Answers = GUESSED_ANSWERS
    trust: FadingRatio = field(
        default_factory=lambda: FadingRatio(1.0, TRUST_WEIGHT_TOKENS, TRUST_MEMORY_TOKENS)
    )
    """Cached prompt tokens that the replica reports, per token that the index promised."""
    pace: FadingRatio = field(
        default_factory=lambda: FadingRatio(GUESSED_PACE, PACE_WEIGHT_SECONDS, PACE_MEMORY_SECONDS)
    )
    """Tokens that a running sequence generates per second."""
    _others: int = 0
    """Number of requests in the last report that came from elsewhere than this router."""
    _others_tokens: float = 0.0
    """Prompt tokens of the queued requests among the `_others`."""
    _ended: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MOST_AMOUNTS))
    """For each ended request that a report may still count: when it ended, and when it was sent."""
    _head_since: float = 0.0
    """Start of the time over which the progress of the first waiting request is estimated."""
    _waiting_tokens: float = 0.0
    """Sum of `uncached` of all waiting requests."""
    _waiting_kv: float = 0.0
    """Sum of `tokens` of all waiting requests."""
    _running_kv: float = 0.0
    """Sum of `running_kv` of all running requests."""
    _promised: _Later = field(default_factory=_Later)
    """Cached tokens that the index promised for requests that have started."""
    _cached_tokens: float = 0.0
    """Cached tokens in the last report that belong to prompts without a first token."""
    _sent_bytes: _Later = field(default_factory=_Later)
    """Bytes of the prompts that were sent."""

    def __post_init__(self) -> None:
        self.fit = StepModelFit(self.prior)

    @property
    def is_open(self) -> bool:
        """Whether the replica may get another request."""
        return not self.is_draining and not self.is_full

    @property
    def requests(self) -> int:
        """Number of waiting and running requests."""
        return self.own_requests + self._others

    @property
    def own_requests(self) -> int:
        """Number of waiting and running requests that this router sent."""
        return len(self.waiting) + len(self.running)

    def is_fresh(self, now: float) -> bool:
        return self.report is not None and now - self.report.at < FRESH_SECONDS

    def hear(self, report: Snapshot) -> Arrived:
        """Learn from a report. Return the prompts that arrived since the last report.

        If the replica's process has restarted since then, its cache is empty.
        """
        before, arrived = self.report, Arrived(0.0, 0.0)
        if before is not None and before.started == report.started:
            new = report.since(before)
            self.fit = self.fit.learn(new.steps, report.at - before.at)
            # A report without `decoded_tokens` counts one token of each sequence in each step.
            decoded = max(new.decoded_tokens, new.steps.sequences)
            self.pace.add(decoded, new.steps.sequence_seconds)
            arrived = Arrived(self._sent_bytes.until(report.at), new.prompt_tokens_arrived)
            self._judge_index(self._promised.until(report.at), new.prompt_tokens_cached)
        else:
            self.index.clear()
            self._sent_bytes.until(report.at)
            self._promised.until(report.at)
            self._cached_tokens = 0.0
        self.answers = _answers_of(report.counters)
        self.report = report
        self.recount()
        return arrived

    def recount(self) -> None:
        """Compare the requests of this router with the last report.

        Call this after requests were restored or forgotten.
        """
        report = self.report
        if report is None:
            return
        unstarted = [(n, each) for n, each in self._mine(report.at) if each.started > report.at]
        begun = sum(each.started <= report.at for each in self.running.values())
        while self._ended and self._ended[0][0] <= report.at:
            self._ended.popleft()
        ended = sum(sent <= report.at for _, sent in self._ended)
        mine = len(unstarted) + begun + ended
        self._others = max(0, report.running + report.waiting - mine)
        self._correct_waiting(report, unstarted)

    def _mine(self, at: float) -> Iterator[tuple[int, Dispatch]]:
        """Yield the requests of this router that were sent before a time, the oldest first."""
        for requests in (self.running, self.waiting):
            yield from ((n, each) for n, each in requests.items() if each.sent <= at)

    def _correct_waiting(self, report: Snapshot, mine: list[tuple[int, Dispatch]]) -> None:
        """Correct the expected tokens of requests without a first token by means of a report.

        The engine computes prompts in the order of their arrival, so its queue contains the newest
        ones. Queued prompts of other routers are assumed to be as long as those of this router.
        """
        queued, left = report.queued_prompt_tokens, report.left_prompt_tokens
        self._others_tokens = 0.0
        if queued is None or left is None:
            return
        begun = max(0, len(mine) - report.waiting)
        expected = sum(each.tokens for _, each in mine[begun:])
        share = (len(mine) - begun) / max(report.waiting, 1)
        self._others_tokens = (1 - share) * queued
        factor = share * queued / expected if expected > 0 else 1.0
        for at, (number, each) in enumerate(mine):
            if number not in self.waiting:
                continue
            tokens, uncached = each.tokens * factor, each.uncached + each.tokens * (factor - 1)
            if at < begun:
                tokens, uncached = each.tokens, left - queued if at == 0 else 0.0
            corrected = each._replace(tokens=tokens, uncached=max(uncached, 1.0))
            self.waiting[number] = corrected
            self._waiting_tokens += corrected.uncached - each.uncached
            self._waiting_kv += corrected.tokens - each.tokens
        if begun and mine[0][0] in self.waiting:
            self._head_since = report.at

    def _judge_index(self, promised: float, cached: float) -> None:
        """Compare the cached tokens of a report with the promises of the index.

        A replica counts cached tokens when it begins a prompt. The router counts promised tokens at
        the first token of the answer, which may be one report later.
        """
        if promised > 0:
            kept = min(self._cached_tokens + cached, promised)
            self.trust.add(kept, promised)
            cached = min(cached, self._cached_tokens + cached - kept)
        self._cached_tokens = cached

    def send(self, number: int, dispatch: Dispatch) -> None:
        self._wait(number, dispatch)
        self._sent_bytes.add(dispatch.sent, dispatch.size)

    def started(self, number: int, now: float) -> None:
        """Note the first token of a request: its prompt is computed, and the next one begins."""
        dispatch = self._leave(number)
        if dispatch is not None:
            self.running[number] = dispatch._replace(started=now)
            self._running_kv += dispatch.running_kv
            self._promised.add(now, dispatch.saved)
            self._head_since = now

    def ended(self, number: int, now: float) -> Dispatch | None:
        """Note the end of a request, and return the request."""
        dispatch = self.forget(number)
        if dispatch is not None:
            self._ended.append((now, dispatch.sent))
        return dispatch

    def answered(self, dispatch: Dispatch, now: float) -> float:
        """Return how many tokens the answer of a request has probably had until a time."""
        return 1.0 + self.pace.value * max(now - dispatch.started, 0.0)

    def restore(self, number: int, dispatch: Dispatch) -> None:
        """Count a request that another router has sent before the last report."""
        if dispatch.started == inf:
            self._wait(number, dispatch)
        else:
            self.running[number] = dispatch
            self._running_kv += dispatch.running_kv

    def forget(self, number: int) -> Dispatch | None:
        """Stop counting a request, although the replica may still compute it."""
        dispatch = self.running.pop(number, None)
        if dispatch is None:
            return self._leave(number)
        self._running_kv -= dispatch.running_kv
        return dispatch

    def _wait(self, number: int, dispatch: Dispatch) -> None:
        if not self.waiting:
            self._head_since = dispatch.sent
        self.waiting[number] = dispatch
        self._waiting_tokens += dispatch.uncached
        self._waiting_kv += dispatch.tokens

    def _leave(self, number: int) -> Dispatch | None:
        dispatch = self.waiting.pop(number, None)
        if dispatch is not None:
            self._waiting_tokens -= dispatch.uncached
            self._waiting_kv -= dispatch.tokens
        return dispatch

    def seconds_of_prompt(self, tokens: float) -> float:
        """Return the seconds that the engine takes for prompt tokens in full steps."""
        report, model = self.report, self.fit.model
        most = report.max_step_tokens if report is not None else 1
        return tokens * (model.prefill + model.fixed / most)

    def seconds_of_answer(self, dispatch: Dispatch) -> float:
        """Return by how many seconds the answer to a prompt lengthens the engine's steps."""
        model = self.fit.model
        return dispatch.answer * (model.sequence + model.kv * dispatch.tokens)

    def wait_of(self, uncached: float, now: float) -> Wait:
        """Return the expected wait of a new request.

        `uncached` is the number of its prompt tokens that the replica computes. In each step, the
        engine first serves the sequences that decode, and then computes prompts in the order of
        their arrival. On average, a request that is waiting now will decode during half of the new
        request's wait. Raises ValueError if the replica has never reported.
        """
        report, model = self.report, self.fit.model
        if report is None:
            raise ValueError("a replica that has not reported has no known load")
        ahead = len(self.waiting) / report.engines
        decoding = (len(self.running) + self._others) / report.engines + ahead / 2
        kv_read = (self._kv_of_running(report) + self._waiting_kv / 2) / report.engines
        budget = max(1.0, report.max_step_tokens - decoding)
        empty = model.fixed + model.sequence * decoding + model.kv * kv_read
        full = empty + model.prefill * budget

        left = self._waiting_tokens
        if self.waiting:
            first = next(iter(self.waiting.values()))
            left -= min(first.uncached, max(0.0, now - self._head_since) * budget / full)
        left = (max(left, 0.0) + self._others_tokens) / report.engines
        steps, rest = divmod(left + uncached, budget)
        computed = steps * full + (empty + model.prefill * rest if rest else 0.0)
        admitted = self._seconds_until_room(report, ahead, uncached, empty)
        start = max(left * full / budget, admitted)
        return Wait(start, max(computed, admitted + uncached * full / budget))

    def _kv_of_running(self, report: Snapshot) -> float:
        """Return the KV tokens that a step reads.

        A replica reports the tokens in its memory. A token that several sequences share counts once
        in the report, but each of these sequences reads it.
        """
        return max(self._running_kv, report.kv_tokens) if self._others else self._running_kv

    def _seconds_until_room(
        self, report: Snapshot, ahead: float, uncached: float, step: float
    ) -> float:
        """Return the seconds until enough sequences have finished to admit another request."""
        running = (len(self.running) + self._others) / report.engines
        if running < 1:
            return 0.0
        held = report.kv_tokens / report.engines
        excess = held + self._waiting_tokens / report.engines + uncached
        excess -= report.kv_capacity_tokens / report.engines
        for_slots = running + ahead + 1 - report.max_sequences
        for_memory = excess / max(held / running, 1.0)
        ends = min(max(for_slots, for_memory, 0.0), running)
        return ends * self.answers.left * step / running


def _answers_of(counters: Counters) -> Answers:
    """Return the lengths of the answers that a replica has finished.

    The probability that a sequence is running at a random time is proportional to its length. On
    average, half of the tokens of a running sequence have been generated.
    """
    lengths = lengths_of(counters.answer_lengths, counters.answer_tokens)
    if lengths is None:
        return GUESSED_ANSWERS
    return Answers(lengths.mean, lengths.mean_square / lengths.mean / 2)

"""The load of one replica, from the router's own requests and from the replica's reports."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from llmservice_operator.routing.prefixes import PrefixIndex
from llmservice_operator.routing.ratios import FadingRatio
from llmservice_operator.scaling.lengths import Lengths, lengths_of
from llmservice_operator.scaling.signals import Snapshot
from llmservice_operator.scaling.step_model import StepModel, StepModelFit

FRESH_SECONDS: Final = 5.0
"""Age in seconds at which a report no longer describes the load."""

GUESSED_ANSWER_TOKENS: Final = 200.0
TRUST_WEIGHT_TOKENS: Final = 5_000.0
TRUST_MEMORY_TOKENS: Final = 200_000.0


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
    seconds: float
    """Expected seconds until the first token."""


class Arrived(NamedTuple):
    """Prompts that reached a replica between two reports."""

    sent_bytes: float
    tokens: float


@dataclass
class Replica:
    """The requests ahead of a new one in a replica, and the time that they take."""

    prior: StepModel
    index: PrefixIndex
    is_draining: bool = False
    report: Snapshot | None = None
    """Last report."""
    waiting: dict[int, Dispatch] = field(default_factory=dict)
    """Requests without a first token, in the order in which they were sent."""
    running: dict[int, Dispatch] = field(default_factory=dict)
    fit: StepModelFit = field(init=False)
    trust: FadingRatio = field(
        default_factory=lambda: FadingRatio(1.0, TRUST_WEIGHT_TOKENS, TRUST_MEMORY_TOKENS)
    )
    """Cached prompt tokens that the replica reports, per token that the index promised."""
    _others: int = 0
    """Requests in the last report that this router did not send."""
    _head_since: float = 0.0
    """Time since when the first waiting request is computed."""
    _waiting_tokens: float = 0.0
    """Expected prompt tokens to compute of all waiting requests."""
    _promised_tokens: float = 0.0
    """Cached tokens that the index promised for requests that started since the last report."""
    _sent_bytes: float = 0.0
    """Bytes of the prompts that were sent since the last report."""

    def __post_init__(self) -> None:
        self.fit = StepModelFit(self.prior)

    @property
    def requests(self) -> int:
        """Number of waiting and running requests."""
        return len(self.waiting) + len(self.running) + self._others

    def is_fresh(self, now: float) -> bool:
        return self.report is not None and now - self.report.at < FRESH_SECONDS

    def hear(self, report: Snapshot) -> Arrived:
        """Learn from a report. Return which prompts arrived since the last one.

        A process that was started again has an empty cache.
        """
        before, arrived = self.report, Arrived(0.0, 0.0)
        if before is not None and before.started == report.started:
            new = report.since(before)
            self.fit = self.fit.learn(new.steps, report.at - before.at)
            arrived = Arrived(self._sent_bytes, new.prompt_tokens_arrived)
            if self._promised_tokens > 0:
                kept = min(new.prompt_tokens_cached, self._promised_tokens)
                self.trust.add(kept, self._promised_tokens)
        else:
            self.index.clear()
        self._promised_tokens = self._sent_bytes = 0.0
        sent = sum(each.sent <= report.at for each in self.waiting.values())
        self._others = max(0, report.running + report.waiting - sent - len(self.running))
        self.report = report
        return arrived

    def send(self, number: int, dispatch: Dispatch) -> None:
        if not self.waiting:
            self._head_since = dispatch.sent
        self.waiting[number] = dispatch
        self._waiting_tokens += dispatch.uncached
        self._sent_bytes += dispatch.size

    def started(self, number: int, now: float) -> None:
        """Note the first token of a request: its prompt is computed, and the next one begins."""
        dispatch = self._leave(number)
        if dispatch is not None:
            self.running[number] = dispatch
            self._promised_tokens += dispatch.saved
            self._head_since = now

    def ended(self, number: int) -> None:
        if self.running.pop(number, None) is None:
            self._leave(number)

    def _leave(self, number: int) -> Dispatch | None:
        dispatch = self.waiting.pop(number, None)
        if dispatch is not None:
            self._waiting_tokens -= dispatch.uncached
        return dispatch

    def seconds_of_prompt(self, tokens: float) -> float:
        """Return the seconds that the engine takes for prompt tokens in full steps."""
        report, model = self.report, self.fit.model
        most = report.max_step_tokens if report is not None else 1
        return tokens * (model.prefill + model.fixed / most)

    def seconds_of_answer(self, tokens: float) -> float:
        """Return by how many seconds the answer to a prompt lengthens the engine's steps."""
        lengths, model = self._answers(), self.fit.model
        answer = GUESSED_ANSWER_TOKENS if lengths is None else lengths.mean
        return answer * (model.sequence + model.kv * tokens)

    def seconds_until_first_token(self, uncached: float, now: float) -> float:
        """Return the expected seconds until the first token of a new request.

        `uncached` is the number of its prompt tokens that the replica computes. In each step, the
        engine first serves the sequences that decode, and then computes prompts in the order of
        their arrival. Requests that wait now decode during half of the time on average. Raises
        ValueError if the replica has never reported.
        """
        report, model = self.report, self.fit.model
        if report is None:
            raise ValueError("a replica that has not reported has no known load")
        ahead = len(self.waiting) / report.engines
        decoding = (len(self.running) + self._others) / report.engines + ahead / 2
        kv_read = (report.kv_tokens + self._waiting_tokens / 2) / report.engines
        budget = max(1.0, report.max_step_tokens - decoding)
        empty = model.fixed + model.sequence * decoding + model.kv * kv_read
        full = empty + model.prefill * budget

        left = self._waiting_tokens
        if self.waiting:
            first = next(iter(self.waiting.values()))
            left -= min(first.uncached, max(0.0, now - self._head_since) * budget / full)
        steps, rest = divmod(max(left, 0.0) / report.engines + uncached, budget)
        computed = steps * full + (empty + model.prefill * rest if rest else 0.0)
        admitted = self._seconds_until_room(report, ahead, uncached, empty)
        return max(computed, admitted + uncached * full / budget)

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
        return ends * self._answer_left() * step / running

    def _answer_left(self) -> float:
        """Return the mean number of tokens that a running sequence still generates.

        At a random time, a sequence is met with a probability that is proportional to its length,
        and on average half of it is generated.
        """
        lengths = self._answers()
        if lengths is None:
            return GUESSED_ANSWER_TOKENS / 2
        return lengths.mean_square / lengths.mean / 2

    def _answers(self) -> Lengths | None:
        if self.report is None:
            return None
        counters = self.report.counters
        return lengths_of(counters.answer_lengths, counters.answer_tokens)

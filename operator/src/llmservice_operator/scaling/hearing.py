"""What each replica told last, and what is taken for true of one that tells nothing.

Silence is not idleness. A replica that serves and is not heard goes on as it did: its load stays
in the demand by its last rates until it is heard again, and then what it really did takes their
place, spread over the time in which it was done.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmservice_operator.scaling.ledger import KEPT_SECONDS, Ledger, Tick
from llmservice_operator.scaling.signals import Counters, ReplicaReport, Scrape, Snapshot
from llmservice_operator.scaling.step_model import WARM_UP_SECONDS

REPLICA_SECONDS = 30.0
"""Time constant of a replica's rates."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What one replica takes in and does in a second, as of the last time it was heard."""

    arrivals: float = 0.0
    arrived: float = 0.0
    """Prompt tokens that come in."""
    prompt: float = 0.0
    """Prompt tokens computed."""
    answer: float = 0.0

    def after(self, done: Counters, seconds: float, kept: float) -> "Rates":
        """The rates after some more seconds, with this share kept of what they were before."""
        return Rates(
            _blend(self.arrivals, done.arrivals / seconds, kept),
            _blend(self.arrived, done.prompt_tokens_arrived / seconds, kept),
            _blend(self.prompt, done.prompt_tokens_computed / seconds, kept),
            _blend(self.answer, done.generated_tokens / seconds, kept),
        )

    def over(self, began: float, ended: float) -> Tick:
        """What is done at these rates in a span of time."""
        seconds = ended - began
        return Tick(
            ended,
            seconds,
            self.arrivals * seconds,
            self.arrived * seconds,
            self.prompt * seconds,
            self.answer * seconds,
        )


def _blend(before: float, now: float, kept: float) -> float:
    return now + kept * (before - now)


@dataclass(frozen=True, slots=True)
class News:
    """What one scrape added."""

    seconds: float = 0.0
    """Since the scrape before; 0 for the first, which only sets marks."""
    total: Counters = field(default_factory=Counters)
    taught: Counters = field(default_factory=Counters)
    """Of replicas that are warm, and have the present engine."""
    was_heard: bool = False
    """Whether any replica answered."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """All replicas as they were last heard."""

    at: float = -math.inf
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)
    rates: Mapping[str, Rates] = field(default_factory=dict)
    serving: Mapping[str, float] = field(default_factory=dict)
    """Ready replicas that are not draining, and since when each is."""
    silent: frozenset[str] = frozenset()
    """Those of them that the last scrape did not hear."""
    late: Mapping[str, float] = field(default_factory=dict)
    """Those that served unheard before they were heard for the first time, and when that was."""
    ledger: Ledger = field(default_factory=Ledger)
    """What is known to have been done."""

    def hear(self, scrape: Scrape, engine_since: float = -math.inf) -> tuple["Hearing", News]:
        """Take in one scrape; one that was taken in already changes nothing.

        Where there is a replica made since `engine_since`, those before it teach nothing any more.
        """
        if scrape.at <= self.at:
            return self, News()
        seconds = scrape.at - self.at if math.isfinite(self.at) else 0.0
        lost = self._lost(scrape)
        known = {report.name for report in scrape.replicas} - lost
        snapshots = {name: it for name, it in self.snapshots.items() if name in known}
        rates = {name: it for name, it in self.rates.items() if name in known}
        late = {name: at for name, at in self.late.items() if at > scrape.at - KEPT_SECONDS}
        spans = [self._assumed(name, self.at) for name in lost]
        heard: set[str] = set()
        total, taught = Counters(), Counters()
        is_renewed = any(it.created >= engine_since for it in scrape.replicas)
        teaches_from = engine_since if is_renewed else -math.inf
        for report in scrape.replicas:
            name, after, before = report.name, report.snapshot, snapshots.get(report.name)
            if after is None or (before is not None and after.at <= before.at):
                continue
            heard.add(name)
            snapshots[name] = after
            done, span = _difference(before, after, self.at)
            if span <= 0:
                if name in self.serving:
                    late[name] = after.at
                continue
            if before is not None and before.started != after.started and name in self.serving:
                spans.append(self._assumed(name, min(after.started, scrape.at)))
            kept = math.exp(-span / REPLICA_SECONDS) if name in rates else 0.0
            rates[name] = rates.get(name, Rates()).after(done, span, kept)
            spans.append(_tick(after.at, span, done, is_serving=_serves(report)))
            total = total.plus(done)
            is_warm = report.ready_at is not None and after.at >= report.ready_at + WARM_UP_SECONDS
            if is_warm and report.created >= teaches_from:
                taught = taught.plus(done)
        ledger = self.ledger
        if seconds > 0 and heard:
            # A time in which nobody was heard is unknown, not empty: it is left out.
            ledger = ledger.add(Tick(scrape.at, seconds)).spread(spans)
        serving = self._serving(scrape)
        silent = frozenset(serving) - heard
        after_it = Hearing(scrape.at, snapshots, rates, serving, silent, late, ledger)
        return after_it, News(seconds, total, taught, bool(heard))

    def likely(self) -> Ledger:
        """The ledger with what those who were not heard did if they went on as before."""
        spans = [self._assumed(name, self.at) for name in self.silent]
        for name, heard_at in self.late.items():
            if name in self.rates and name in self.serving:
                began = max(self.serving[name], heard_at - KEPT_SECONDS)
                spans.append(self.rates[name].over(began, heard_at))
        return self.ledger.spread(spans)

    @property
    def unmeasured(self) -> frozenset[str]:
        """Replicas that serve and of whose load nothing is known yet."""
        return (self.silent | self.late.keys()) & self.serving.keys() - self.rates.keys()

    def _assumed(self, name: str, until: float) -> Tick:
        """What a replica did since it was last heard, if it went on as before."""
        if name not in self.rates:
            return Tick(until, 0.0)
        return self.rates[name].over(self.snapshots[name].at, until)

    def _serving(self, scrape: Scrape) -> dict[str, float]:
        return {
            report.name: self.serving.get(report.name, report.ready_at or scrape.at)
            for report in scrape.replicas
            if _serves(report)
        }

    def _lost(self, scrape: Scrape) -> set[str]:
        """Replicas that were silent to their end, and will not tell any more what they did."""
        goes_on = {it.name for it in scrape.replicas if it.snapshot is not None or _serves(it)}
        return set(self.silent - goes_on)


def _difference(
    before: Snapshot | None, after: Snapshot, last_scrape: float
) -> tuple[Counters, float]:
    """What a replica did since it was last heard, and in how many seconds.

    A replica seen for the first time counts from its start if it started while we were looking;
    an older one only sets the mark from which later reports count.
    """
    if before is None:
        if after.started < last_scrape:
            return Counters(), 0.0
        return after.counters, after.at - after.started
    began = before.at if before.started == after.started else max(before.at, after.started)
    return after.since(before), after.at - began


def _serves(report: ReplicaReport) -> bool:
    return report.is_ready and not report.is_draining


def _tick(at: float, seconds: float, done: Counters, *, is_serving: bool) -> Tick:
    """What one replica did; the work of one that drains is no load of those that stay."""
    return Tick(
        at,
        seconds,
        done.arrivals,
        done.prompt_tokens_arrived,
        done.prompt_tokens_computed if is_serving else 0.0,
        done.generated_tokens if is_serving else 0.0,
        done.judged,
        done.slo_met,
    )

"""Keeps the last report of each replica, and estimates the work of replicas that do not answer.

Silence is not idleness. A replica that serves and does not answer is assumed to continue at its
last rates, so its load stays in the demand. When it answers again, its report replaces the
estimate, spread over the time of the silence.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llmservice_operator.scaling.held import HeldRequests
from llmservice_operator.scaling.ledger import KEPT_SECONDS, Ledger, Tick
from llmservice_operator.scaling.signals import (
    Counters,
    Flow,
    ReplicaReport,
    Scrape,
    Snapshot,
    Tally,
)
from llmservice_operator.scaling.step_model import WARM_UP_SECONDS

RATE_SECONDS = 30.0
"""Time constant of the averaging of a replica's rates, in seconds."""


@dataclass(frozen=True, slots=True)
class Increment:
    """Work that one scrape added."""

    seconds: float = 0.0
    """Seconds since the previous scrape. 0 for the first scrape, which only sets starting points.
    """
    total: Counters = field(default_factory=Counters)
    learnable: Counters = field(default_factory=Counters)
    """Counters from which the step model learns: those of the warm replicas. Once a replica with
    the present engine exists, replicas with an earlier engine are left out."""
    has_answer: bool = False
    """Whether any replica answered."""


@dataclass(frozen=True, slots=True)
class Tracking:
    """The last report, the rates and the state of every replica."""

    at: float = -math.inf
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)
    rates: Mapping[str, Flow] = field(default_factory=dict)
    """Rates of each replica as of its last report, per second."""
    serving: Mapping[str, float] = field(default_factory=dict)
    """Ready replicas that are not draining, with the time when each became Ready."""
    silent: frozenset[str] = frozenset()
    """Serving replicas that did not answer the last scrape."""
    late: Mapping[str, float] = field(default_factory=dict)
    """Replicas that served before their first report, with the time of that report."""
    ledger: Ledger = field(default_factory=Ledger)
    """Work that reports have confirmed."""
    held: HeldRequests = field(default_factory=HeldRequests)

    def add(
        self, scrape: Scrape, mean_prompt_tokens: float = 0.0, engine_since: float = -math.inf
    ) -> tuple["Tracking", Increment]:
        """Add one scrape. A repeated scrape changes nothing.

        A request that a router holds has arrived, and is counted with the mean length of a prompt.
        It is subtracted when a replica counts it.

        Once a replica exists that was created at or after `engine_since`, the step model learns
        only from such replicas.
        """
        if scrape.at <= self.at:
            return self, Increment()
        seconds = scrape.at - self.at if math.isfinite(self.at) else 0.0
        lost = self._lost(scrape)
        known = {report.name for report in scrape.replicas} - lost
        snapshots = {name: it for name, it in self.snapshots.items() if name in known}
        rates = {name: it for name, it in self.rates.items() if name in known}
        late = {name: at for name, at in self.late.items() if at > scrape.at - KEPT_SECONDS}
        spans = [self._estimated(name, self.at) for name in lost]
        answered: set[str] = set()
        total, learnable = list[Counters](), list[Counters]()
        is_renewed = any(it.created >= engine_since for it in scrape.replicas)
        learns_from = engine_since if is_renewed else -math.inf
        for report in scrape.replicas:
            name, after, before = report.name, report.snapshot, snapshots.get(report.name)
            if after is None or (before is not None and after.at <= before.at):
                continue
            answered.add(name)
            snapshots[name] = after
            done, span = _difference(before, after, self.at)
            if span <= 0:
                if name in self.serving:
                    late[name] = after.at
                continue
            if before is not None and before.started != after.started and name in self.serving:
                spans.append(self._estimated(name, min(after.started, scrape.at)))
            kept = math.exp(-span / RATE_SECONDS) if name in rates else 0.0
            rates[name] = _blended(rates.get(name), done, span, kept)
            spans.append(_tick(after.at, span, done, is_serving=_serves(report)))
            total.append(done)
            is_warm = report.ready_at is not None and after.at >= report.ready_at + WARM_UP_SECONDS
            if is_warm and report.created >= learns_from:
                learnable.append(done)
        usual = sum(it.arrivals for it in rates.values())
        held, held_arrivals = self.held.add(scrape, self.at, usual)
        for it in held_arrivals:
            prompt_tokens = it.requests * mean_prompt_tokens
            tally = Tally(arrivals=it.requests, prompt_tokens_arrived=prompt_tokens)
            spans.append(Tick(it.at, it.seconds, tally))
        ledger = self.ledger
        if seconds > 0 and answered:
            # The load during a time without any answer is unknown, so that time is left out.
            ledger = ledger.add(Tick(scrape.at, seconds)).spread(spans)
        serving = self._serving(scrape)
        silent = frozenset(serving) - answered
        after_it = Tracking(scrape.at, snapshots, rates, serving, silent, late, ledger, held)
        all_done = Counters.total(total)
        learned = all_done if len(learnable) == len(total) else Counters.total(learnable)
        return after_it, Increment(seconds, all_done, learned, bool(answered))

    def likely(self) -> Ledger:
        """Return the ledger with estimates.

        They cover the replicas that did not answer, and the time that a replica served before its
        first report.
        """
        spans = [self._estimated(name, self.at) for name in self.silent]
        for name, answered_at in self.late.items():
            if name in self.rates and name in self.serving:
                began = max(self.serving[name], answered_at - KEPT_SECONDS)
                spans.append(_at_rates(self.rates[name], began, answered_at))
        return self.ledger.spread(spans) if spans else self.ledger

    @property
    def unmeasured(self) -> frozenset[str]:
        """Replicas that serve and have no rates yet."""
        return (self.silent | self.late.keys()) & self.serving.keys() - self.rates.keys()

    def _estimated(self, name: str, until: float) -> Tick:
        """Return the estimated work since a replica's last report, at its last known rates."""
        if name not in self.rates:
            return Tick(until, 0.0)
        return _at_rates(self.rates[name], self.snapshots[name].at, until)

    def _serving(self, scrape: Scrape) -> dict[str, float]:
        return {
            report.name: self.serving.get(report.name, report.ready_at or scrape.at)
            for report in scrape.replicas
            if _serves(report)
        }

    def _lost(self, scrape: Scrape) -> set[str]:
        """Return the silent replicas that neither answer nor serve any more.

        No report will replace their estimate.
        """
        goes_on = {it.name for it in scrape.replicas if it.snapshot is not None or _serves(it)}
        return set(self.silent - goes_on)


def _blended(rates: Flow | None, done: Counters, seconds: float, kept: float) -> Flow:
    """Return the rates after this scrape, in which the old rates keep the share `kept`."""
    now = Flow.of(done).times((1 - kept) / seconds)
    return now if rates is None else now.plus(rates, kept)


def _at_rates(rates: Flow, began: float, ended: float) -> Tick:
    """Return the work at these rates in a time span.

    It does not estimate how many requests meet the SLO.
    """
    seconds = ended - began
    return Tick(ended, seconds, Tally.of(rates.times(seconds)))


def _difference(
    before: Snapshot | None, after: Snapshot, last_scrape: float
) -> tuple[Counters, float]:
    """Return the work of a replica since its last report, and the length of that time in seconds.

    The first report of a replica that started after the last scrape covers the time since that
    start. The first report of an older replica only sets the starting point for later reports.
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
    """Return the work of one replica.

    The tokens of a replica that is draining or not Ready are left out, because they are no load on
    the other replicas.
    """
    tally = Tally.of(done)
    if not is_serving:
        tally = replace(tally, prompt_tokens_computed=0.0, generated_tokens=0.0)
    return Tick(at, seconds, tally)

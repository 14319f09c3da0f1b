"""One scrape of a service, from reports to demand: the whole path of the number in one place.

    state, assessment = observe(state, scrape, slo)

The state is a value: a metrics server keeps it, a simulator keeps many.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from llmservice_operator.scaling.capacity import (
    EngineLimits,
    RequestMix,
    ServiceLevelObjective,
    missed_share,
    sustainable_rate,
)
from llmservice_operator.scaling.capacity_factor import CapacityFactor
from llmservice_operator.scaling.cold_start import ColdStarts
from llmservice_operator.scaling.demand import STEADY_SECONDS, Demand, Price, demand
from llmservice_operator.scaling.ledger import Ledger, Tick
from llmservice_operator.scaling.scale_down import is_bursty, scale_down_window
from llmservice_operator.scaling.signals import Counters, ReplicaReport, Scrape, Snapshot
from llmservice_operator.scaling.step_model import WARM_UP_SECONDS, StepModel, StepModelFit
from llmservice_operator.scaling.traffic import TrafficMemory

TARGET_PERCENT = 85.0
STALE_SECONDS = 15.0
"""A replica whose newest snapshot is older than this is missing."""
LONGEST_TICK_SECONDS = 10.0
"""A longer silence is not one tick: what it held is spread over its own length."""
REPLICA_SECONDS = 30.0
"""Time constant of the utilization shown per replica."""


class Missing(StrEnum):
    """Why there is no demand: the caller holds the replicas, and says why."""

    STARTING = "Starting"
    NO_READY_REPLICA = "NoReadyReplica"
    REPLICAS_MISSING = "ReplicasMissing"
    NO_TRAFFIC_YET = "NoTrafficYet"


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second of one replica."""

    prompt: float = 0.0
    answer: float = 0.0


@dataclass(frozen=True, slots=True)
class ScalingState:
    """All that one scrape leaves to the next."""

    fit: StepModelFit
    first_at: float | None = None
    at: float = -math.inf
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)
    rates: Mapping[str, Rates] = field(default_factory=dict)
    ready: frozenset[str] = frozenset()
    """Replicas whose cold start is already known."""
    ledger: Ledger = field(default_factory=Ledger)
    traffic: TrafficMemory = field(default_factory=TrafficMemory)
    cold_starts: ColdStarts = field(default_factory=ColdStarts)
    factor: CapacityFactor = field(default_factory=CapacityFactor)


@dataclass(frozen=True, slots=True)
class Assessment:
    """What the service needs, and everything that led to it."""

    demand_percent: float | None
    """None: unknown, which is never zero. The replicas must be held."""
    missing: Missing | None = None
    parts: Demand | None = None
    utilization_percent: Mapping[str, float] = field(default_factory=dict)
    """Effective GPU utilization of each Ready replica."""
    capacity: float | None = None
    """Requests per second of this mix that one replica sustains."""
    capacity_factor: float = 1.0
    cold_start_seconds: float = 0.0
    scale_down_window_seconds: float = 0.0
    is_bursty: bool = False
    attainment: float | None = None
    """Share of the requests judged in the last minute that met the SLO."""
    model: StepModel | None = None
    missing_replicas: int = 0


def observe(
    state: ScalingState, scrape: Scrape, slo: ServiceLevelObjective
) -> tuple[ScalingState, Assessment]:
    """Learn from a scrape and say what the service needs."""
    state = _learn(state, scrape)
    ready = [r for r in scrape.replicas if r.is_ready and not r.is_draining]
    fresh = [s for r in ready if (s := _fresh_snapshot(state, r, scrape.at)) is not None]
    cold_start = state.cold_starts.estimate
    unknown = Assessment(
        None,
        capacity_factor=state.factor.value,
        cold_start_seconds=cold_start,
        scale_down_window_seconds=scale_down_window(cold_start, False),
        model=state.fit.model,
        missing_replicas=len(ready) - len(fresh),
    )
    if state.first_at is None or scrape.at < state.first_at + STEADY_SECONDS - 1e-6:
        return state, replace(unknown, missing=Missing.STARTING)
    if not ready:
        return state, replace(unknown, missing=Missing.NO_READY_REPLICA)
    if 2 * (len(ready) - len(fresh)) > len(ready) or not fresh:
        return state, replace(unknown, missing=Missing.REPLICAS_MISSING)
    mix = state.traffic.mix
    if mix is None:
        return state, replace(unknown, missing=Missing.NO_TRAFFIC_YET)

    limits = _limits(fresh)
    rate = sustainable_rate(mix, state.fit.model, limits, slo)
    price = price_of(mix, state.fit.model, state.traffic.computed_share, rate * state.factor.value)
    queued = scrape.held_requests + sum(snapshot.waiting for snapshot in fresh)
    parts = demand(state.ledger, price, queued, len(ready), cold_start)
    state = _correct(
        state, scrape.at, mix, slo, limits, parts.load / len(ready) * rate, parts, len(ready)
    )
    bursty = is_bursty(state.ledger, price)
    return state, replace(
        unknown,
        demand_percent=_held(parts.percent, len(ready), len(fresh)),
        parts=parts,
        utilization_percent={
            report.name: 100 * _utilization(state.rates[report.name], price)
            for report in ready
            if report.name in state.rates
        },
        capacity=rate * state.factor.value,
        scale_down_window_seconds=scale_down_window(cold_start, bursty),
        is_bursty=bursty,
        attainment=_attainment(state.ledger),
    )


def _learn(state: ScalingState, scrape: Scrape) -> ScalingState:
    """Take the reports into the state."""
    tick_seconds = scrape.at - state.at if math.isfinite(state.at) else 0.0
    snapshots: dict[str, Snapshot] = {}
    rates: dict[str, Rates] = {}
    total, taught, served = Counters(), Counters(), Counters()
    was_heard = False
    for report in scrape.replicas:
        before = state.snapshots.get(report.name)
        after = report.snapshot
        if after is None or (before is not None and after.at <= before.at):
            if before is not None:
                snapshots[report.name] = before
                rates[report.name] = state.rates.get(report.name, Rates())
            continue
        was_heard = True
        snapshots[report.name] = after
        done, seconds = _difference(before, after, state.at)
        if seconds <= 0:
            continue
        # After a gap the sum of minutes must not look like the burst of one tick.
        share = min(1.0, tick_seconds / seconds) if seconds > LONGEST_TICK_SECONDS else 1.0
        total = total.plus(done, share)
        if report.is_ready and not report.is_draining:
            served = served.plus(done, share)
        if report.ready_at is not None and after.at >= report.ready_at + WARM_UP_SECONDS:
            taught = taught.plus(done)
        rates[report.name] = _faded(state.rates.get(report.name), done, seconds)
    state = replace(
        state,
        at=scrape.at,
        first_at=scrape.at if state.first_at is None and was_heard else state.first_at,
        snapshots=snapshots,
        rates=rates,
        cold_starts=_with_cold_starts(state, scrape),
        ready=state.ready | {r.name for r in scrape.replicas if r.is_ready},
    )
    if tick_seconds <= 0 or not was_heard:
        return state
    tick = Tick(
        scrape.at,
        tick_seconds,
        total.arrivals,
        total.prompt_tokens_arrived,
        served.prompt_tokens_computed,
        served.generated_tokens,
        total.judged,
        total.slo_met,
    )
    return replace(
        state,
        ledger=state.ledger.add(tick),
        traffic=state.traffic.learn(total, tick_seconds),
        fit=state.fit.learn(taught.steps, tick_seconds),
    )


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


def _faded(before: Rates | None, done: Counters, seconds: float) -> Rates:
    prompt, answer = done.prompt_tokens_computed / seconds, done.generated_tokens / seconds
    if before is None:
        return Rates(prompt, answer)
    kept = math.exp(-seconds / REPLICA_SECONDS)
    return Rates(
        prompt + kept * (before.prompt - prompt),
        answer + kept * (before.answer - answer),
    )


def _with_cold_starts(state: ScalingState, scrape: Scrape) -> ColdStarts:
    """Cold starts of replicas that became Ready while we were looking."""
    cold_starts = state.cold_starts
    if state.first_at is None:
        return cold_starts
    for report in scrape.replicas:
        if report.is_ready and report.ready_at is not None and report.name not in state.ready:
            cold_starts = cold_starts.add(report.ready_at - report.created)
    return cold_starts


def _fresh_snapshot(state: ScalingState, report: ReplicaReport, now: float) -> Snapshot | None:
    snapshot = state.snapshots.get(report.name)
    return snapshot if snapshot is not None and now - snapshot.at <= STALE_SECONDS else None


def _limits(snapshots: list[Snapshot]) -> EngineLimits:
    """What the least of the replicas can hold."""
    return EngineLimits(
        min(snapshot.max_sequences for snapshot in snapshots),
        min(snapshot.kv_capacity_tokens for snapshot in snapshots),
        min(snapshot.max_step_tokens for snapshot in snapshots),
    )


def price_of(mix: RequestMix, model: StepModel, computed_share: float, capacity: float) -> Price:
    """Marginal GPU-seconds, stretched so that a mean request costs 1 / capacity."""
    stretch = 1 / (capacity * mix.work(model))
    token = mix.token_work(model)
    prompts, answers = mix.prompts, mix.answers
    variance = model.prefill**2 * (prompts.mean_square - prompts.mean**2) + token**2 * (
        answers.mean_square - answers.mean**2
    )
    return Price(
        request=1 / capacity,
        prompt_token=model.prefill * stretch,
        answer_token=token * stretch,
        mean_answer=answers.mean,
        computed_share=computed_share,
        spread=math.sqrt(1 + variance / mix.work(model) ** 2),
    )


def _utilization(rates: Rates, price: Price) -> float:
    return rates.prompt * price.prompt_token + rates.answer * price.answer_token


def _held(percent: float, ready: int, fresh: int) -> float:
    """The demand, with replicas that do not answer taken as busy: enough to hold, not to grow."""
    missing = ready - fresh
    if missing == 0:
        return percent
    return max(percent, min(percent + TARGET_PERCENT * missing, TARGET_PERCENT * ready))


def _attainment(ledger: Ledger) -> float | None:
    minute = ledger.last(STEADY_SECONDS)
    return minute.slo_met / minute.judged if minute.judged > 0 else None


def _correct(
    state: ScalingState,
    now: float,
    mix: RequestMix,
    slo: ServiceLevelObjective,
    limits: EngineLimits,
    rate: float,
    parts: Demand,
    ready: int,
) -> ScalingState:
    """Move κ by the requests that finished in the last minute."""
    if slo.ttft_seconds is None and slo.itl_seconds is None:
        return state
    minute = state.ledger.last(STEADY_SECONDS)
    # A request remembers an overload until it has finished and left the minute.
    memory = STEADY_SECONDS + 2 * mix.answers.mean * (slo.itl_seconds or 0.05)
    factor = state.factor.observe(
        now=now,
        judged=minute.judged,
        missed=1 - minute.slo_met / minute.judged if minute.judged > 0 else 0.0,
        allowed=1 - slo.objective,
        unrepairable=missed_share(0.0, mix, state.fit.model, limits, slo),
        expected=missed_share(rate, mix, state.fit.model, limits, slo),
        utilization=parts.load / ready,
        has_backlog=parts.backlog > 0,
        memory_seconds=memory,
    )
    return replace(state, factor=factor)

"""Computes the demand of a service from one scrape. This module contains the whole path.

    state, assessment = assess(state, scrape, slo)

The state is immutable. The caller, a metrics server or a simulator, keeps it until the next scrape.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from llmservice_operator.api.calibration import UnmetDemand
from llmservice_operator.scaling.capacity import Capacity, LeastLimits, least_limits
from llmservice_operator.scaling.capacity_factor import CapacityFactor, Evidence
from llmservice_operator.scaling.cold_start import ColdStarts
from llmservice_operator.scaling.conditions import EngineLimits, RequestMix, ServiceLevelObjective
from llmservice_operator.scaling.demand import (
    REACTION_SECONDS,
    Demand,
    Queue,
    demand,
)
from llmservice_operator.scaling.forecast import LoadHistory
from llmservice_operator.scaling.load import STEADY_SECONDS, Price, RecentLoad
from llmservice_operator.scaling.scale_down import UndoneScaleDowns, scale_down_window
from llmservice_operator.scaling.signals import Flow, ReplicaReport, Scrape, Snapshot
from llmservice_operator.scaling.step_model import StepModel, StepModelFit
from llmservice_operator.scaling.tracking import Tracking
from llmservice_operator.scaling.traffic import FEWEST_REQUESTS, TrafficMemory

TARGET_PERCENT = 85.0
RECENT_SECONDS = 30.0
"""Time span in seconds over which the present hit rate of the prefix cache is measured."""

CERTAINTY = 3.0
"""Number of standard deviations by which a load must exceed the replicas to be certain before it
was watched for STEADY_SECONDS."""

NOTABLE_BACKLOG = 0.05
"""Share of the load above which a backlog explains misses. Behind a long prompt, a few requests
always wait."""

GAP_SECONDS = 30.0
"""Time in seconds without a known demand after which a scale-down waits for a whole window again.
The HorizontalPodAutoscaler does not remember more than its recommendations."""

CARRIED_SECONDS = 120.0
"""Greatest age in seconds of an unmet demand with which a new process answers."""

FRESH_SECONDS = 15.0
"""Greatest age in seconds of a usable snapshot. A replica without a usable snapshot is missing."""


class Missing(StrEnum):
    """Reason why the demand is unknown.

    The caller keeps the number of replicas and reports this reason.
    """

    STARTING = "Starting"
    NO_READY_REPLICA = "NoReadyReplica"
    REPLICAS_MISSING = "ReplicasMissing"
    NO_TRAFFIC_YET = "NoTrafficYet"


@dataclass(frozen=True, slots=True)
class ScalingState:
    """State of one service between two scrapes."""

    fit: StepModelFit
    engine_since: float = -math.inf
    """Replicas created at this time or later have the present engine. Older ones may have another
    engine."""
    first_at: float | None = None
    tracking: Tracking = field(default_factory=Tracking)
    reported_percent: float = 0.0
    """Last demand, in percent, that was reported while the load of every serving replica was known
    from its reports."""
    ready: frozenset[str] = frozenset()
    """Existing replicas that are or were Ready, so that their cold start is not counted again."""
    traffic: TrafficMemory = field(default_factory=TrafficMemory)
    cold_starts: ColdStarts = field(default_factory=ColdStarts)
    factor: CapacityFactor = field(default_factory=CapacityFactor)
    known_at: float = math.inf
    """Time of the last known demand. Infinite before the first one of a new service, and negative
    infinite if an earlier process knew it."""
    resumed_at: float = -math.inf
    """Time of the first known demand after the last gap."""
    unmet_demand: UnmetDemand | None = None
    """Last known demand, if it exceeded the Ready replicas."""
    capacity: float | None = None
    """Last known rate of requests per second of the usual mix that one replica sustains. None
    before the first one of this process, and after a change of the engine."""
    computed: Capacity | None = None
    """`capacity` without the factor, as it was last computed."""
    history: LoadHistory = field(default_factory=LoadHistory)
    """Load of the last two weeks. Empty without forecasts."""
    undone: UndoneScaleDowns = field(default_factory=UndoneScaleDowns)

    def with_new_engine(
        self, since: float, guess: StepModel, *, keeps_history: bool = True
    ) -> "ScalingState":
        """Return the state for a new engine. The learned step times become the prior.

        The history of the load is in percent of one replica. Without `keeps_history`, it is dropped
        because a replica of the new engine sustains another load.
        """
        return replace(
            self,
            fit=StepModelFit.after(self.fit.model, guess),
            engine_since=since,
            capacity=None,
            history=self.history if keeps_history else LoadHistory(),
        )


@dataclass(frozen=True, slots=True)
class Assessment:
    """The demand of the service, and the values from which it was computed."""

    demand_percent: float | None
    """Demand in percent of one replica. None means that the demand is unknown. An unknown demand is
    not zero, so the number of replicas must be held."""
    missing: Missing | None = None
    parts: Demand | None = None
    utilization_percent: Mapping[str, float] = field(default_factory=dict)
    """Effective GPU utilization, in percent, of each Ready replica that is not draining and has
    known rates."""
    capacity: float | None = None
    """Requests per second of the usual mix that one replica sustains."""
    capacity_factor: float = 1.0
    cold_start_seconds: float = 0.0
    node_wait_seconds: float = 0.0
    longest_start_seconds: float = 0.0
    scale_down_window_seconds: float = 0.0
    is_bursty: bool = False
    attainment: float | None = None
    """Share of the requests judged in the last minute that met the SLO. None if no request was
    judged, or if the demand is unknown."""
    model: StepModel | None = None
    missing_replicas: int = 0
    foreseen_percent: float = 0.0
    """Load in percent of one replica for which replicas are started ahead of time. 0 without a
    forecast."""
    least_limits: LeastLimits = field(default_factory=LeastLimits)


def assess(
    state: ScalingState,
    scrape: Scrape,
    slo: ServiceLevelObjective,
    target_percent: float = TARGET_PERCENT,
    *,
    forecasts: bool = True,
) -> tuple[ScalingState, Assessment]:
    """Learn from a scrape, and return the new state and the assessment.

    With `forecasts`, the demand rises before a ramp that usually comes at this time.
    In the first minute of a process, the demand that an earlier process left unmet still applies.
    """
    if not forecasts:
        state = replace(state, history=LoadHistory())
    state, seen = _assess(state, scrape, slo, target_percent)
    if forecasts:
        state, seen = _with_forecast(state, seen, scrape.at, target_percent)
    unmet = state.unmet_demand
    if unmet is None or not _is_starting(state, scrape) or scrape.at > unmet.at + CARRIED_SECONDS:
        return state, seen
    ready = sum(it.is_ready and not it.is_draining for it in scrape.replicas)
    if ready == 0 or unmet.percent <= max(target_percent * ready, seen.demand_percent or 0.0):
        return state, seen
    return state, replace(seen, demand_percent=unmet.percent, missing=None)


def _with_forecast(
    state: ScalingState, seen: Assessment, at: float, target_percent: float
) -> tuple[ScalingState, Assessment]:
    """Add the load to the history, and raise the demand to the one that is foreseen."""
    if seen.parts is None or seen.demand_percent is None:
        return state, seen
    history = state.history.add(at, 100 * seen.parts.load)
    starts = state.cold_starts
    lead = starts.node_wait + starts.estimate + REACTION_SECONDS
    foreseen = history.foreseen(at, lead, target_percent)
    demand_percent = max(seen.demand_percent, foreseen)
    return replace(state, history=history), replace(
        seen, demand_percent=demand_percent, foreseen_percent=foreseen
    )


def _is_starting(state: ScalingState, scrape: Scrape) -> bool:
    """Return whether the service has been watched for less than STEADY_SECONDS."""
    return state.first_at is None or scrape.at < state.first_at + STEADY_SECONDS - 1e-6


def _assess(
    state: ScalingState, scrape: Scrape, slo: ServiceLevelObjective, target_percent: float
) -> tuple[ScalingState, Assessment]:
    state = learn(state, scrape)
    tracking = state.tracking
    ready = [r for r in scrape.replicas if r.is_ready and not r.is_draining]
    fresh = [s for r in ready if (s := _fresh_snapshot(state, r, scrape.at)) is not None]
    cold_start = state.cold_starts.estimate
    unknown = Assessment(
        None,
        capacity_factor=state.factor.value,
        cold_start_seconds=cold_start,
        node_wait_seconds=state.cold_starts.node_wait,
        longest_start_seconds=state.cold_starts.longest_start,
        scale_down_window_seconds=scale_down_window(cold_start, False),
        model=state.fit.model,
        missing_replicas=len(ready) - len(fresh),
    )
    starting = replace(unknown, missing=Missing.STARTING)
    mix = state.traffic.mix
    is_starting = _is_starting(state, scrape)
    # A prior is no ground for an early answer, but a stored calibration is.
    is_resumed = state.known_at == -math.inf or state.resumed_at > -math.inf
    if is_starting and not (is_resumed and fresh and 2 * len(fresh) >= len(ready)):
        return state, starting
    if not ready:
        return state, replace(unknown, missing=Missing.NO_READY_REPLICA)
    if 2 * (len(ready) - len(fresh)) > len(ready) or not fresh:
        return state, replace(unknown, missing=Missing.REPLICAS_MISSING)
    if mix is None:
        return state, replace(unknown, missing=Missing.NO_TRAFFIC_YET)

    limits = _limits(fresh)
    usual = mix.usual()
    computed = Capacity.of(usual, state.fit.model, limits, slo, state.computed)
    rate = computed.rate_of(usual, state.fit.model)
    price = price_of(mix, state.fit.model, _computed_share(state), rate * state.factor.value)
    likely = RecentLoad(tracking.likely(), price)
    state, parts, percent = _demand(state, likely, scrape, ready, target_percent)
    minute = tracking.ledger.last(STEADY_SECONDS).done
    present = sum(not it.is_draining for it in scrape.replicas)
    if is_starting:
        # A scale-up that is already certain does not wait for the rest of the minute.
        noise = CERTAINTY * price.spread / math.sqrt(max(minute.arrivals, 1))
        if 100 * parts.load / (1 + noise) <= target_percent * present:
            return state, starting
    attainment = minute.slo_met / minute.judged if minute.judged > 0 else None
    factor = state.factor
    if slo.ttft_seconds is not None or slo.itl_seconds is not None:
        load = parts.load / len(ready)
        evidence = Evidence(
            judged=minute.judged,
            missed=0.0 if attainment is None else 1 - attainment,
            allowed=1 - slo.objective,
            unrepairable=computed.unrepairable,
            expected=computed.missed(load),
            utilization=load,
            # A burst that is seen for the first time is no load yet, but explains misses.
            has_backlog=parts.backlog > NOTABLE_BACKLOG * parts.load or parts.has_burst,
            # The misses of an overload are counted until one minute after the delayed requests have
            # finished.
            memory_seconds=STEADY_SECONDS + 2 * mix.answers.mean * (slo.itl_seconds or 0.05),
        )
        factor = factor.corrected(scrape.at, evidence)
    variation = likely.variation
    bursty = variation is not None and variation.is_bursty
    undone = state.undone.add(
        scrape.at,
        present,
        percent / target_percent,
        is_steady=variation is not None and variation.is_steady,
    )
    window = scale_down_window(cold_start, bursty, undone)
    is_after_gap = scrape.at > state.known_at + GAP_SECONDS
    resumed_at = scrape.at if is_after_gap else state.resumed_at
    if scrape.at < resumed_at + window:
        # Nothing remembers the recommendations of before the gap, so the replicas stay.
        percent = max(percent, target_percent * len(ready))
    unmet = percent > target_percent * len(ready)
    capacity = rate * factor.value
    state = replace(
        state,
        factor=factor,
        undone=undone,
        resumed_at=resumed_at,
        known_at=scrape.at,
        capacity=capacity,
        computed=computed,
        unmet_demand=UnmetDemand(percent=percent, at=scrape.at) if unmet else None,
    )
    return state, replace(
        unknown,
        demand_percent=percent,
        parts=parts,
        utilization_percent={
            report.name: 100 * _utilization(tracking.rates[report.name], price)
            for report in ready
            if report.name in tracking.rates
        },
        capacity=capacity,
        scale_down_window_seconds=window,
        is_bursty=bursty,
        attainment=attainment,
        least_limits=least_limits(mix, state.fit.model, limits, slo),
    )


def learn(state: ScalingState, scrape: Scrape) -> ScalingState:
    """Add the reports to the state. A repeated scrape changes nothing."""
    tracking, added = state.tracking.add(
        scrape, state.traffic.mean_prompt_tokens, state.engine_since
    )
    state = replace(
        state,
        tracking=tracking,
        first_at=scrape.at if state.first_at is None and added.has_answer else state.first_at,
        cold_starts=_with_cold_starts(state, scrape),
        ready=frozenset(r.name for r in scrape.replicas if r.is_ready or r.name in state.ready),
    )
    if added.seconds <= 0 or not added.has_answer:
        return state
    return replace(
        state,
        traffic=state.traffic.learn(added.total, added.seconds),
        fit=state.fit.learn(added.learnable.steps, added.seconds),
    )


def _with_cold_starts(state: ScalingState, scrape: Scrape) -> ColdStarts:
    """Return the cold starts, including those of replicas that became Ready since the last
    scrape.
    """
    cold_starts = state.cold_starts
    if state.first_at is None:
        return cold_starts
    for report in scrape.replicas:
        if report.is_ready and report.ready_at is not None and report.name not in state.ready:
            scheduled = report.created if report.scheduled_at is None else report.scheduled_at
            cold_starts = cold_starts.add(report.created, scheduled, report.ready_at)
    return cold_starts


def _fresh_snapshot(state: ScalingState, report: ReplicaReport, now: float) -> Snapshot | None:
    snapshot = state.tracking.snapshots.get(report.name)
    return snapshot if snapshot is not None and now - snapshot.at <= FRESH_SECONDS else None


def _demand(
    state: ScalingState,
    likely_load: RecentLoad,
    scrape: Scrape,
    ready: list[ReplicaReport],
    target_percent: float,
) -> tuple[ScalingState, Demand, float]:
    """Return the parts of the likely demand, and the percent to report.

    The two may differ while a replica is silent or has no rates yet. Such a replica counts as
    loaded at the target, so silence never causes a scale-down. Only reports of replicas that answer
    cause a scale-up.
    """
    tracking, starts = state.tracking, state.cold_starts
    price, ledger = likely_load.price, tracking.ledger
    load = likely_load if likely_load.ledger is ledger else RecentLoad(ledger, price)

    def queue(name: str) -> Queue:
        rates = tracking.rates.get(name)
        arriving = load.present / len(ready) if rates is None else price.arriving(rates)
        return Queue(tracking.snapshots[name].waiting, arriving)

    def of(load: RecentLoad, names: list[str]) -> Demand:
        return demand(
            load,
            map(queue, names),
            tracking.held.number,
            len(ready),
            starts.estimate,
            starts.node_wait,
        )

    likely = of(likely_load, [r.name for r in ready if r.name in tracking.snapshots])
    if not tracking.silent and not tracking.unmeasured:
        return replace(state, reported_percent=likely.percent), likely, likely.percent
    missing = {r.name for r in ready if _fresh_snapshot(state, r, scrape.at) is None}
    answering = [r.name for r in ready if r.name not in missing]
    measured = of(load, answering).percent
    busy = measured + target_percent * len(missing | tracking.unmeasured)
    most = max(target_percent * len(ready), state.reported_percent)
    return state, likely, max(measured, min(max(likely.percent, busy), most))


def _computed_share(state: ScalingState) -> float:
    """Return the share of arriving prompt tokens that must be computed.

    The cache may become useless within seconds, so the last RECENT_SECONDS count if they are worse
    than the mean of the last ten minutes.
    """
    recent = state.tracking.ledger.last(RECENT_SECONDS).done
    if recent.arrivals < FEWEST_REQUESTS:
        return state.traffic.computed_share
    return max(recent.computed_share, state.traffic.computed_share)


def _limits(snapshots: list[Snapshot]) -> EngineLimits:
    """Return the smallest value of each limit over all replicas."""
    return EngineLimits(
        min(max(it.max_sequences // it.pipeline_stages, 1) for it in snapshots),
        min(it.kv_capacity_tokens / it.engines / it.pipeline_stages for it in snapshots),
        min(it.max_step_tokens for it in snapshots),
        min(it.engines * it.pipeline_stages for it in snapshots),
    )


def price_of(mix: RequestMix, model: StepModel, computed_share: float, capacity: float) -> Price:
    """Return the marginal GPU-seconds of prompt and answer tokens, scaled to the capacity.

    A mean request of the usual mix then costs 1 / `capacity` seconds, with `capacity` in requests
    per second. An outlier costs as much more as it has more tokens.
    """
    stretch = 1 / (capacity * mix.usual().work(model))
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


def _utilization(rates: Flow, price: Price) -> float:
    prompts = rates.prompt_tokens_computed * price.prompt_token
    return prompts + rates.generated_tokens * price.answer_token

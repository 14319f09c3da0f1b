"""Implements our policy with the product's own modules and the inputs of the metrics server."""

import math
from dataclasses import dataclass, field

from llmservice_operator.api.calibration import Calibration
from llmservice_operator.scaling.assess import (
    TARGET_PERCENT,
    Assessment,
    ScalingState,
    assess,
)
from llmservice_operator.scaling.calibration import (
    calibration_of,
    has_moved,
    resumed,
    shortest_period,
)
from llmservice_operator.scaling.forecast import LoadHistory
from llmservice_operator.scaling.hpa import HpaSpec, HpaState, decide
from llmservice_operator.scaling.recommend import behavior_for
from llmservice_operator.scaling.scale_down import window_to_write
from llmservice_operator.scaling.signals import (
    HoldCounters,
    ReplicaReport,
    RouterPod,
    RouterSnapshot,
    Scrape,
    Snapshot,
)
from llmservice_operator.scaling.step_model import StepModelFit
from scaling.counters import snapshot_of
from scaling.simulation import Pod, Simulation

SCRAPE_SECONDS = 5
SYNC_SECONDS = 15


@dataclass
class Ours:
    """Computes the demand at every scrape, and the replicas at every sync of the HPA."""

    prior_factor: float = 1.0
    history: LoadHistory = field(default_factory=LoadHistory)
    """Load of the weeks before."""
    state: ScalingState | None = None
    hpa: HpaState = field(default_factory=HpaState)
    window_seconds: float = math.inf
    """Scale-down window of the HPA."""
    written_at: float = 0.0
    """Time at which the operator wrote the window."""
    assessment: Assessment | None = None
    stored: Calibration | None = None
    """Calibration in the status of the service."""
    stored_at: float = -math.inf
    has_router: bool = False
    """Whether the requests that wait for a replica are in a router, which reports them."""
    demands: list[tuple[float, float | None, float, float]] = field(default_factory=list)
    """For every scrape, its time, and the demand in percent, the capacity factor and the scale-down
    window in seconds."""

    def step(self, view: Simulation) -> int | None:
        if view.is_unwatched:
            self.state = self.assessment = None
            return None
        if view.now % SCRAPE_SECONDS == 0:
            self._scrape(view)
        if (view.now + 7 * view.scenario.seed) % SYNC_SECONDS == 0 and self.assessment:
            return self._sync(view, self.assessment)
        return None

    def victim_order(self, view: Simulation, pods: list[Pod]) -> list[Pod]:
        """Return the pods with the fewest requests first, and among equals the newest first.

        The operator's pod-deletion-cost gives almost this order, in coarser steps.
        """
        fleet = view.fleet
        return sorted(
            pods,
            key=lambda pod: (fleet.running[pod.engine] + fleet.waiting[pod.engine], -pod.created),
        )

    def _scrape(self, view: Simulation) -> None:
        state = self.state
        if state is None:
            state = ScalingState(
                StepModelFit(view.workload.hardware.prior.scaled(self.prior_factor)),
                history=self.history,
            )
            if self.stored is not None:
                state = resumed(state, self.stored)
        reports = tuple(_report(view, pod) for pod in view.pods)
        scrape = Scrape(view.now, reports, (_router(view),) if self.has_router else ())
        self._note(scrape)
        self.state, self.assessment = assess(state, scrape, view.workload.slo)
        self._store(view.now, calibration_of(self.state))
        seen = self.assessment
        self.demands.append(
            (view.now, seen.demand_percent, seen.capacity_factor, seen.scale_down_window_seconds)
        )

    def _note(self, scrape: Scrape) -> None:
        """Take note of a scrape before it is assessed."""

    def _store(self, now: float, learned: Calibration | None) -> None:
        """Keep the calibration as the leader writes it into the status."""
        if learned is None or now < self.stored_at + shortest_period(learned):
            return
        if self.stored is None or has_moved(learned, self.stored):
            self.stored, self.stored_at = learned, now

    def _sync(self, view: Simulation, seen: Assessment) -> int:
        maximum = view.workload.max_replicas
        learned = seen.scale_down_window_seconds
        if not math.isfinite(self.window_seconds):
            self.window_seconds, self.written_at = learned, view.now
        window = window_to_write(self.window_seconds, learned, view.now - self.written_at)
        if window != self.window_seconds:
            self.window_seconds, self.written_at = window, view.now
        decision = decide(
            self.hpa,
            HpaSpec(behavior_for(maximum, self.window_seconds), 1, maximum, TARGET_PERCENT),
            view.desired,
            seen.demand_percent,
            view.now,
        )
        self.hpa = decision.state
        return decision.replicas


def _report(view: Simulation, pod: Pod) -> ReplicaReport:
    answers = pod.is_ready and not view.is_blind
    return ReplicaReport(
        pod.name,
        pod.created,
        pod.is_ready and not pod.is_draining,
        pod.ready_at,
        pod.is_draining,
        _snapshot(view, pod) if answers else None,
    )


def _router(view: Simulation) -> RouterPod:
    counters = HoldCounters(arrived=view.waited, released=view.waited - view.held)
    return RouterPod("router", RouterSnapshot(view.now, view.held, 0.0, counters, True))


def _snapshot(view: Simulation, pod: Pod) -> Snapshot:
    limits = view.workload.hardware.limits
    return snapshot_of(view.fleet, pod.engine, limits, view.now, pod.started)

"""Runs rounds over the services that this metrics server watches. A round queries every replica and
builds the report of every service.
"""

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.accelerator_class import AcceleratorClass
from llmservice_operator.api.autoscaling import ScalingForecast, ScalingMetric
from llmservice_operator.api.calibration import Calibration
from llmservice_operator.api.fields import Fields
from llmservice_operator.api.load_report import STALE_SECONDS, ExternalMetrics, LoadReport
from llmservice_operator.api.spec import LLMService, LLMServiceSpec
from llmservice_operator.cluster import Key
from llmservice_operator.desired.accelerator_class import with_class
from llmservice_operator.desired.step_prior import UNKNOWN_PRIOR, prior_of
from llmservice_operator.engine_metrics import EngineAnswer
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.metrics_server.calibration_store import stored_calibration
from llmservice_operator.metrics_server.report_builder import build_report, scaling_view
from llmservice_operator.metrics_server.scrapes import Engines, Scrapes
from llmservice_operator.scaling.assess import (
    TARGET_PERCENT,
    Assessment,
    Missing,
    ScalingState,
    assess,
    learn,
)
from llmservice_operator.scaling.calibration import calibration_of, resumed, with_calibration
from llmservice_operator.scaling.conditions import ServiceLevelObjective
from llmservice_operator.scaling.idleness import Idleness, held_percent
from llmservice_operator.scaling.latency import LatencyWindow
from llmservice_operator.scaling.signals import RouterPod, Scrape
from llmservice_operator.scaling.step_model import StepModelFit
from llmservice_operator.sharding import Shares
from llmservice_operator.workload import Replica, replicas_of

logger = logging.getLogger(__name__)

AskRouters = Callable[[], Awaitable[Mapping[Key, tuple[RouterPod, ...]]]]
"""Asks the router pods of all services for their reports, and returns all router pods."""


async def _no_routers() -> Mapping[Key, tuple[RouterPod, ...]]:
    return {}


REST_SECONDS = STALE_SECONDS / 2
"""Age in seconds up to which the report of a service at rest is repeated unchanged."""

REPEATED_SECONDS = 30.0
"""Greatest age in seconds of another metrics server's report that takes precedence over an own one.
A round over many services takes up to two periods of five seconds."""

CLOCK_SKEW_SECONDS = 30.0
"""Longest time in seconds that the API server's clock, which dates the pods, may be behind the
clock of this process."""


@dataclass(frozen=True)
class _Aim:
    """The part of the spec that an assessment uses."""

    objective: ServiceLevelObjective
    target_percent: float
    forecasts: bool

    def assess(self, state: ScalingState, scrape: Scrape) -> tuple[ScalingState, Assessment]:
        return assess(state, scrape, self.objective, self.target_percent, forecasts=self.forecasts)


@dataclass
class _Service:
    """State of one service between two rounds."""

    uid: str
    state: ScalingState
    generation: int | None = None
    engine: tuple[Fields, ...] | None = None
    """Engine and hardware from the spec; None before the spec was read."""
    objective: ServiceLevelObjective = field(default_factory=ServiceLevelObjective)
    target_percent: float = TARGET_PERCENT
    forecasts: bool = False
    answers: dict[str, EngineAnswer] = field(default_factory=dict)
    latencies: LatencyWindow = field(default_factory=LatencyWindow)
    idleness: Idleness = field(default_factory=Idleness)
    learned: Calibration | None = None
    is_known: bool = False
    """True once the service has been watched for long enough to know its load."""


class Fleet:
    """The state of every service that this metrics server watches, and the newest report of every
    service.

    The learner of a service reports the load that it computes. The follower also computes the load,
    so that it can take over at any time, but repeats the learner's report, as all other metrics
    servers do. Learner and follower query a pod some milliseconds apart, and the autoscaler must
    not read alternating loads. If the learner does not know a load, or does not answer, the
    follower reports the load that it has computed with the learner's calibration.
    """

    def __init__(
        self,
        services: Callable[[], Iterable[Manifest]],
        pods: Callable[[], Iterable[Manifest]],
        engines: Engines,
        external_metrics: Callable[[], ExternalMetrics],
        classes: Mapping[str, AcceleratorClass],
        scraped: Callable[[int, int], None] = lambda answered, failed: None,
        ask_routers: AskRouters = _no_routers,
        shares: Callable[[], Shares] = lambda: Shares(""),
        silent: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`classes` are the accelerator classes of the administrator, by name.

        `scraped` is called in each round with the numbers of replicas that answered and that did
        not. `shares` returns the share of this metrics server, by default all services. `silent`
        returns the other metrics servers that do not answer.
        """
        self.reports: dict[Key, LoadReport] = {}
        """The newest report of every service."""
        self.lags = False
        """True while another metrics server knows a load of which this one must learn."""
        self._services: dict[Key, _Service] = {}
        self._own: dict[Key, LoadReport] = {}
        """Reports that this process has computed."""
        self._theirs: dict[Key, LoadReport] = {}
        """Newest reports that other metrics servers have computed."""
        self._listed: Collection[Key] = ()
        """All services that existed in the last round."""
        self._at = -math.inf
        self._round_ended = asyncio.Condition()
        self._list_services = services
        self._list_pods = pods
        self._external_metrics = external_metrics
        self._classes = classes
        self._scrapes = Scrapes(engines, scraped)
        self._ask_routers = ask_routers
        self._shares = shares
        self._find_silent = silent

    @property
    def learned(self) -> dict[Key, Calibration]:
        """Calibrations that this process has learned as the learner of a service. A service is left
        out until this process has watched it for a minute.
        """
        shares = self._shares()
        return {
            key: it.learned
            for key, it in self._services.items()
            if it.learned is not None and it.is_known and shares.leads(key)
        }

    @property
    def watched_reports(self) -> dict[Key, LoadReport]:
        """The newest reports of the services that this process watches."""
        return {key: self.reports[key] for key in self._own if key in self.reports}

    def number_of_services(self) -> tuple[int, int]:
        """Return the numbers of services that this process learns about, and that it follows."""
        shares = self._shares()
        led = sum(shares.leads(key) for key in self._own)
        return led, len(self._own) - led

    def held_percent(self, key: Key, held_requests: int) -> float:
        """Return the demand of requests that wait in a router, in percent of one replica."""
        service = self._services.get(key)
        if service is None:
            return held_percent(held_requests, None, 0.0)
        state = service.state
        return held_percent(held_requests, state.capacity, state.cold_starts.estimate)

    def computed_for(self, learners: Collection[str]) -> Mapping[Key, LoadReport]:
        """Return the reports that this process has computed about the services of these
        learners.
        """
        shares = self._shares()
        return {key: it for key, it in self._own.items() if shares.learner(key) in learners}

    def take(self, reports: Mapping[Key, LoadReport]) -> None:
        """Take reports that another metrics server has computed."""
        for key, report in reports.items():
            known = self._theirs.get(key)
            if known is None or known.at <= report.at:
                self._theirs[key] = report
                if key in self._listed:
                    self._publish(key)

    async def reports_as_of(self, at: float) -> Mapping[Key, LoadReport]:
        """Wait for the end of the round at the time `at`, and return its reports or newer ones."""
        async with self._round_ended:
            await self._round_ended.wait_for(lambda: self._at >= at)
        return self.reports

    async def round(self, at: float) -> None:
        """Query every replica that this process watches, then build the reports as of `at`, in
        seconds since 1970.
        """
        shares = self._shares()
        manifests = {
            (it["metadata"]["namespace"], it["metadata"]["name"]): it
            for it in self._list_services()
        }
        watched = {key: it for key, it in manifests.items() if shares.keeps(key)}
        pods: defaultdict[Key, list[Manifest]] = defaultdict(list)
        for pod in self._list_pods():
            metadata = pod["metadata"]
            key = metadata["namespace"], (metadata.get("labels") or {}).get(names.SERVICE_LABEL, "")
            if key in watched:
                pods[key].append(pod)
        replicas = {key: replicas_of(pods[key]) if key in pods else [] for key in watched}
        # All are asked at the same time, because a request that moves from a router to a replica in
        # the meantime would count twice, or not at all.
        answers, routers = await asyncio.gather(self._scrapes.ask(replicas), self._ask_routers())
        for kept in (self._services, self._own):
            for gone in kept.keys() - watched.keys():
                del kept[gone]
        for gone in (self.reports.keys() | self._theirs.keys()) - manifests.keys():
            self.reports.pop(gone, None)
            self._theirs.pop(gone, None)
        external_metrics = self._external_metrics()
        for key, manifest in watched.items():
            at_rest = self._repeated_at_rest(key, manifest, replicas[key], at, external_metrics)
            if at_rest is not None:
                self._own[key] = at_rest
                continue
            learned = None if shares.leads(key) else _learned_by(self._theirs.get(key), at)
            try:
                self._own[key] = self._assess(
                    key,
                    manifest,
                    replicas[key],
                    answers[key],
                    routers.get(key, ()),
                    at,
                    learned,
                )
            except (ArithmeticError, ValueError):
                # Impossible numbers from one pod must not stop the reports of other services.
                logger.exception("%s/%s: what its replicas report makes no sense", *key)
                self._services.pop(key, None)
                self._own.pop(key, None)
            # Each assessment takes milliseconds. Requests to this process must not wait for all
            # assessments.
            await asyncio.sleep(0)
        self.lags = any(
            it.demand_percent is not None and at - it.at <= REPEATED_SECONDS
            for key, it in self._theirs.items()
            if key in self._own and not self._services[key].is_known
        )
        self._at, self._listed = at, manifests.keys()
        for key in manifests:
            self._publish(key)
        async with self._round_ended:
            self._round_ended.notify_all()

    def _publish(self, key: Key) -> None:
        """Choose the report of a service: the one of its learner, or else of its follower.

        An old report stays until there is another one, because its age is a part of it.
        """
        shares = self._shares()
        own, theirs = self._own.get(key), self._theirs.get(key)
        is_mine = shares.leads(key) or shares.learner(key) in self._find_silent()
        found = [it for it in ((own, theirs) if is_mine else (theirs, own)) if it is not None]
        fresh = [it for it in found if self._at - it.at <= REPEATED_SECONDS]
        known = [it for it in fresh if it.demand_percent is not None]
        report = next(iter(known or fresh), None) or max(found, key=lambda it: it.at, default=None)
        if report is None:
            self.reports.pop(key, None)
            return
        external_metrics = self._external_metrics()
        if report.external_metrics != external_metrics:
            report = replace(report, external_metrics=external_metrics)
        self.reports[key] = report

    def _repeated_at_rest(
        self,
        key: Key,
        manifest: Manifest,
        replicas: list[Replica],
        at: float,
        external_metrics: ExternalMetrics,
    ) -> LoadReport | None:
        """Return the last report of a service that had no replicas then and has none now.

        None for any other service. An idle service therefore costs almost nothing.
        """
        service, last = self._services.get(key), self._own.get(key)
        if replicas or service is None or last is None:
            return None
        metadata = manifest["metadata"]
        is_same = (service.uid, service.generation) == (
            metadata["uid"],
            metadata.get("generation", 0),
        )
        if not is_same or last.replicas or last.demand_percent is not None:
            return None
        is_current = last.idle_seconds is None and last.external_metrics == external_metrics
        if is_current and at - last.at < REST_SECONDS:
            return last
        return replace(last, at=at, idle_seconds=None, external_metrics=external_metrics)

    def _assess(
        self,
        key: Key,
        manifest: Manifest,
        replicas: list[Replica],
        answers: Mapping[str, EngineAnswer],
        routers: tuple[RouterPod, ...],
        at: float,
        learned: Calibration | None,
    ) -> LoadReport:
        service = self._services.get(key)
        if service is None or service.uid != manifest["metadata"]["uid"]:
            service = self._services[key] = _Service(
                manifest["metadata"]["uid"], self._initial_state(manifest)
            )
        replicas_by_name = {it.name for it in replicas}
        service.answers = {
            name: answer
            for name, answer in {**service.answers, **answers}.items()
            if name in replicas_by_name
        }
        self._read_spec(service, manifest)
        scrape = Scrape(
            at,
            tuple(scaling_view(it, answers.get(it.name)) for it in replicas),
            routers,
        )
        service.idleness = service.idleness.add(scrape)
        aim = _Aim(service.objective, service.target_percent, service.forecasts)
        if learned is None:
            service.state, assessment = aim.assess(service.state, scrape)
        else:
            service.state, assessment = _assess_as_follower(service.state, learned, scrape, aim)
        service.learned = calibration_of(service.state) if learned is None else None
        service.is_known = assessment.missing != Missing.STARTING
        service.latencies = service.latencies.add(
            at,
            {name: it.latencies for name, it in answers.items() if it.latencies is not None},
            replicas_by_name,
        )
        return build_report(
            at,
            replicas,
            service.answers,
            assessment,
            service.latencies.total,
            service.target_percent,
            learned or service.learned,
            self._external_metrics(),
            # A load that is foreseen needs the replicas that have started for it.
            None if assessment.foreseen_percent else service.idleness.seconds,
            service.state.cold_starts.last,
            service.idleness.has_old_router,
        )

    def _initial_state(self, manifest: Manifest) -> ScalingState:
        """Return the state before the first round, from a prior and the calibration in the
        status.
        """
        spec = self._spec_of(manifest)
        state = ScalingState(StepModelFit(UNKNOWN_PRIOR if spec is None else prior_of(spec)))
        stored = stored_calibration(manifest)
        return state if stored is None else resumed(state, stored)

    def _read_spec(self, service: _Service, manifest: Manifest) -> None:
        """Adopt the engine, the hardware and the objective of the spec, if the spec has changed and
        can be read.
        """
        generation = manifest["metadata"].get("generation", 0)
        if generation == service.generation:
            return
        service.generation = generation
        spec = self._spec_of(manifest)
        if spec is None:
            return  # The replicas still run the previous spec, so its capacity stays.
        engine = spec.model, spec.engine, spec.accelerator, spec.template
        if service.engine is not None and engine != service.engine:
            since = self._at - CLOCK_SKEW_SECONDS
            # Most changes of the template, such as a label, change no engine.
            is_alike = engine[:-1] == service.engine[:-1]
            service.state = service.state.with_new_engine(
                since, prior_of(spec), keeps_history=is_alike
            )
        service.engine = engine
        slo = spec.objectives
        service.objective = ServiceLevelObjective(
            _in_seconds(slo.ttft_milliseconds),
            _in_seconds(slo.itl_milliseconds),
            slo.objective_percent / 100,
        )
        autoscaling = spec.autoscaling
        service.target_percent, service.forecasts = TARGET_PERCENT, False
        # A forecast raises the demand, which only this metric has as its target.
        if autoscaling and autoscaling.metric is ScalingMetric.EFFECTIVE_GPU_UTILIZATION:
            service.target_percent = autoscaling.target
            service.forecasts = autoscaling.forecast is ScalingForecast.AUTO

    def _spec_of(self, manifest: Manifest) -> LLMServiceSpec | None:
        """Return the spec with the fields of its accelerator class; None if it cannot be read."""
        try:
            service = LLMService.parse(manifest)
        except InvalidSpec:
            return None
        try:
            return with_class(service, self._classes).spec
        except InvalidSpec:
            # The operator refuses an unknown class. The limits in the spec apply without the class.
            return service.spec


def _learned_by(report: LoadReport | None, at: float) -> Calibration | None:
    """Return the calibration in the learner's report; None if there is none, or while the learner
    has only just begun to observe the service.
    """
    if report is None or at - report.at > REPEATED_SECONDS or report.missing == Missing.STARTING:
        return None
    return report.calibration


def _assess_as_follower(
    state: ScalingState,
    learned: Calibration,
    scrape: Scrape,
    aim: "_Aim",
) -> tuple[ScalingState, Assessment]:
    """Assess the scrape with the learner's calibration, and keep the step times and the traffic
    that this process has learned.

    κ and cold starts are learned slowly from rare events, so the learner's values replace those of
    this process.
    """
    own = learn(state, scrape)
    as_learner = with_calibration(own, learned)
    after, assessment = aim.assess(as_learner, scrape)
    kept = replace(
        after,
        fit=own.fit,
        traffic=own.traffic,
        cold_starts=as_learner.cold_starts,
        factor=as_learner.factor,
    )
    return kept, assessment


def _in_seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000

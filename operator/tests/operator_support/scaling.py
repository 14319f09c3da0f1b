"""Simulated model servers: the counters of a constant load, without an engine."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from llmservice_operator.api.calibration import LENGTH_BUCKETS
from llmservice_operator.scaling.assess import Assessment, ScalingState, assess
from llmservice_operator.scaling.conditions import ServiceLevelObjective
from llmservice_operator.scaling.signals import (
    Counters,
    HoldCounters,
    ReplicaReport,
    RouterPod,
    RouterSnapshot,
    Scrape,
    Snapshot,
    StepSums,
)
from llmservice_operator.scaling.step_model import StepModel, StepModelFit

TRUTH = StepModel(fixed=6.5e-3, prefill=35e-6, sequence=20e-6, kv=50e-9)
SLO = ServiceLevelObjective()
PROMPT, ANSWER = 1000, 200
TICK = 5.0


def step_sums(steps: Iterable[tuple[float, float, float]], model: StepModel = TRUTH) -> StepSums:
    """Return the sums over steps, each given as (prefill tokens, sequences, KV tokens)."""
    total = [0.0] * len(StepSums().moments)
    for prefill, sequences, kv in steps:
        seconds = model.fixed + model.prefill * prefill + model.sequence * sequences + model.kv * kv
        terms = (1.0, prefill, sequences, kv, seconds)
        products = [terms[i] * terms[j] for i in range(5) for j in range(i, 5)]
        total = [a + b for a, b in zip(total, products, strict=True)]
    return StepSums(tuple(total))


def bucket_of(tokens: int) -> int:
    """Return the histogram bucket of a length in tokens."""
    return min((max(tokens, 1) - 1).bit_length(), LENGTH_BUCKETS - 1)


def histogram(tokens: int, count: float) -> tuple[float, ...]:
    return tuple(count if i == bucket_of(tokens) else 0.0 for i in range(LENGTH_BUCKETS))


def load(
    rate: float,
    seconds: float,
    *,
    met: float = 1.0,
    served: float | None = None,
    model: StepModel = TRUTH,
) -> Counters:
    """Return the counters after `seconds` seconds of `rate` requests per second.

    Of these, `served` requests per second are finished, by default all.
    """
    arrived = rate * seconds
    done = (rate if served is None else served) * seconds
    sequences = max(rate * 4, 1.0)
    steps = [(p, sequences, sequences * 1100) for p in (0.0, 500.0, 1000.0)]
    return Counters(
        arrivals=arrived,
        prompt_tokens_arrived=PROMPT * arrived,
        prompt_tokens_computed=PROMPT * done,
        generated_tokens=ANSWER * done,
        finished=done,
        judged=done,
        ttft_met=met * done,
        itl_met=met * done,
        slo_met=met * done,
        prompt_lengths=histogram(PROMPT, arrived),
        answer_lengths=histogram(ANSWER, done),
        answer_tokens=ANSWER * done,
        steps=step_sums(steps, model),
    )


@dataclass
class Server:
    """One replica, whose counters grow as a test sets them."""

    name: str
    created: float = 0.0
    is_ready: bool = True
    is_draining: bool = False
    ready_at: float = 0.0
    waiting: int = 0
    running: int = 10
    engines: int = 1
    pipeline_stages: int = 1
    started: float = 0.0
    counters: Counters = field(default_factory=Counters)
    scheduled_at: float | None = None
    takes_requests: bool = True

    def serve(self, counters: Counters) -> None:
        self.counters = self.counters.plus(counters)

    def become_ready(self, at: float) -> None:
        self.is_ready, self.ready_at = True, at

    def restart(self, at: float) -> None:
        self.started, self.counters = at, Counters()

    def report(self, at: float, *, is_heard: bool = True) -> ReplicaReport:
        capacity = self.engines * 420_000.0
        snapshot = Snapshot(
            at,
            self.started,
            self.counters,
            self.running,
            self.waiting,
            1e4,
            capacity,
            256,
            1024,
            self.engines,
            pipeline_stages=self.pipeline_stages,
        )
        return ReplicaReport(
            self.name,
            self.created,
            self.is_ready,
            self.ready_at if self.is_ready else None,
            self.is_draining,
            snapshot if is_heard and self.is_ready else None,
            self.scheduled_at,
        )


@dataclass
class Service:
    """A service that is scraped every five seconds."""

    servers: list[Server]
    now: float = 1000.0
    state: ScalingState = field(default_factory=lambda: ScalingState(StepModelFit(TRUTH)))
    slo: ServiceLevelObjective = SLO
    last: Assessment | None = None
    tokens_per_step: float = 1.0
    cached_share: float = 0.0
    """Share of the prompt tokens that the prefix cache saves."""
    held: int | None = None
    """Requests that the router holds. None if it does not report."""
    hold_counters: HoldCounters | None = None
    """Counters of the router. None if it is older than they are."""
    router_started: float = 0.0
    forecasts: bool = True

    def run(
        self,
        seconds: float,
        rate: float,
        *,
        met: float = 1.0,
        served: float | None = None,
        silent: frozenset[str] = frozenset(),
    ) -> Assessment:
        """Serve `rate` requests per second on all servers together; return the last assessment."""
        for _ in range(int(seconds / TICK)):
            self.now += TICK
            ready = [
                s for s in self.servers if s.is_ready and not s.is_draining and s.takes_requests
            ]
            for server in ready:
                done = None if served is None else served / len(ready)
                counters = load(rate / len(ready), TICK, met=met, served=done)
                prompts, saved = counters.prompt_tokens_computed, self.cached_share
                server.serve(
                    replace(
                        counters,
                        decoded_tokens=self.tokens_per_step * counters.steps.sequences,
                        prompt_tokens_computed=(1 - saved) * prompts,
                        prompt_tokens_cached=saved * prompts,
                    )
                )
            self.look(silent=silent)
        assert self.last is not None
        return self.last

    def look(self, *, silent: frozenset[str] = frozenset()) -> float:
        """Scrape the servers once; return the demand in percent, or NaN if it is unknown."""
        reports = tuple(
            server.report(self.now, is_heard=server.name not in silent) for server in self.servers
        )
        router = None
        if self.held is not None:
            counters, started = self.hold_counters, self.router_started
            router = RouterSnapshot(self.now, self.held, started, counters)
        self.state, self.last = assess(
            self.state,
            Scrape(self.now, reports, (RouterPod("router", router),)),
            self.slo,
            forecasts=self.forecasts,
        )
        percent = self.last.demand_percent
        return math.nan if percent is None else percent

    def wait(
        self,
        arrived: int,
        *,
        released: int = 0,
        timed_out: int = 0,
        left: int = 0,
        refused: int = 0,
    ) -> None:
        """Let requests arrive at the router and wait, and let waiting ones end in these ways."""
        assert self.held is not None
        assert self.hold_counters is not None
        self.held += arrived - released - timed_out - left
        self.hold_counters = self.hold_counters.plus(
            HoldCounters(arrived, released, timed_out, refused)
        )

    def copy(self) -> "Service":
        """Return a copy of the service, with which a test can try another future."""
        servers = [replace(server) for server in self.servers]
        return replace(self, servers=servers)


def service(replicas: int = 2) -> Service:
    return Service([Server(f"pod-{i}") for i in range(replicas)])


def demand_of(percent: float | None) -> float:
    """Return a demand that must be known."""
    assert percent is not None
    return percent

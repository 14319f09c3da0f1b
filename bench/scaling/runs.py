"""Lists and simulates the runs of the bench. One run is one policy on one cell with one seed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from scaling.choices import Routing
from scaling.oracle import Oracle
from scaling.ours import Ours
from scaling.peers import SHIPPED_BY_PEERS, peers
from scaling.simulation import Policy, Scenario, Simulation
from scaling.truth import Truth, truth_of
from scaling.unseen import CONSTANT, UNSEEN
from scaling.workloads import GATE_WORKLOADS, PREFIX_CACHE, Traffic, Workload

OURS, ORACLE = "ours", "oracle"
SEEDS = (1, 2, 3)
PRIORS = (1.0, 0.75, 1.33)
GATE_COLD_STARTS = (60.0, 180.0)
OTHER_COLD_STARTS = (30.0, 300.0)
WORKLOADS = {
    workload.name: workload for workload in (*GATE_WORKLOADS, PREFIX_CACHE, *UNSEEN, *CONSTANT)
}

GATE_ROUTING = Routing.LEAST_REQUESTS
"""Routing of the runs of the gates. All policies have it, so that only the autoscalers differ."""
SHIPPED = {OURS: Routing.RANDOM, ORACLE: GATE_ROUTING, **SHIPPED_BY_PEERS}
"""Routing that each policy ships with. Ours is a plain Service, because the chart value
router.enabledByDefault is false."""
WITH_ROUTER = Routing.ROUTER
"""Routing of ours if the service has a router."""
NEAREST = ("kubeai-tuned", "llm-d-concurrency-tuned", "llm-d-held-tuned")
"""The peers with the fewest GPU-hours over the gate cells among those with at least 85 % mean SLO
attainment."""

OUTAGE_SECONDS = 300.0
HUNG_SHARE = 0.4
"""Share of the traffic's time after which an engine hangs."""
RESTART_SECONDS = (10.0, 25.0)
"""Time in seconds from the step up in load until no metrics server runs, and until one runs
again."""


@dataclass(frozen=True)
class Run:
    """Parameters of one simulation, in a form that can be written into a file."""

    workload: str
    cold_start: float
    policy: str
    seed: int
    prior: float = 1.0
    event: str = ""
    """Disturbance of the run: "", "outage", "never-ready", "hung" or "restart"."""
    routing: Routing = GATE_ROUTING


@dataclass(frozen=True)
class Result:
    """Results of one run."""

    run: Run
    gpu_hours: float
    attainment_percent: float
    events: int
    peak: int
    utilization_percent: float
    """Offered work, as GPU time at the true capacity, in percent of the paid GPU time."""
    recovery_seconds: float
    cut: int
    replicas_lost: int
    """Replicas that were removed while no metrics were available."""
    scale_ups: int


def gate_runs(peer_names: tuple[str, ...]) -> Iterator[Run]:
    """Yield the runs that the gates need."""
    for workload in GATE_WORKLOADS:
        for cold_start in GATE_COLD_STARTS:
            for seed in SEEDS:
                yield Run(workload.name, cold_start, ORACLE, seed)
                for prior in PRIORS:
                    yield Run(workload.name, cold_start, OURS, seed, prior)
            for name in peer_names:
                routing = gate_routing(name)
                yield Run(workload.name, cold_start, name, SEEDS[0], routing=routing)
    for seed in SEEDS:
        yield Run("diurnal", 60.0, OURS, seed, event="outage")


def other_runs(peer_names: tuple[str, ...]) -> Iterator[Run]:
    """Yield the runs without a gate: other cold starts, a prefix cache, and a pod that never
    becomes ready.
    """
    for workload in GATE_WORKLOADS:
        for cold_start in OTHER_COLD_STARTS:
            for policy in (OURS, ORACLE, *peer_names):
                routing = gate_routing(policy)
                yield Run(workload.name, cold_start, policy, SEEDS[0], routing=routing)
    for policy in (OURS, ORACLE, *peer_names):
        yield Run(PREFIX_CACHE.name, 60.0, policy, SEEDS[0], routing=gate_routing(policy))
    yield Run("diurnal", 60.0, OURS, SEEDS[0], event="never-ready")


def gate_routing(policy: str) -> Routing:
    """Return the routing of a policy in the runs of the gates.

    It is GATE_ROUTING, but a policy that scales on held requests needs the routing that holds them.
    """
    return Routing.FLOW_CONTROL if SHIPPED.get(policy) is Routing.FLOW_CONTROL else GATE_ROUTING


def shipped_runs() -> Iterator[Run]:
    """Yield the runs of ours and of the nearest peers with the routing that each ships with, and of
    ours with a router.
    """
    policies = [(OURS, WITH_ROUTER), *((name, SHIPPED[name]) for name in (OURS, *NEAREST))]
    for workload in GATE_WORKLOADS:
        for cold_start in GATE_COLD_STARTS:
            for policy, routing in policies:
                yield Run(workload.name, cold_start, policy, SEEDS[0], routing=routing)


def matrix_runs(workloads: Iterable[str], policies: tuple[str, ...]) -> Iterator[Run]:
    """Yield the runs of every policy with every routing, with a cold start of 60 s."""
    for workload in workloads:
        for policy in policies:
            for routing in Routing:
                event = WORKLOADS[workload].event
                yield Run(workload, 60.0, policy, SEEDS[0], event=event, routing=routing)


def unseen_runs(peer_names: tuple[str, ...], seeds: tuple[int, ...]) -> Iterator[Run]:
    """Yield the runs of the workloads for which nothing was tuned, each beside the oracle and every
    peer.

    Our policy also runs the workloads with a disturbance without it, and the constant workloads.
    """
    for workload in UNSEEN:
        if not workload.is_present():
            continue
        for seed in seeds:
            for policy in (OURS, ORACLE):
                yield Run(workload.name, 60.0, policy, seed, event=workload.event)
        for name in peer_names:
            event, routing = workload.event, gate_routing(name)
            yield Run(workload.name, 60.0, name, seeds[0], event=event, routing=routing)
        if workload.event:
            for seed in seeds:
                yield Run(workload.name, 60.0, OURS, seed)
    for workload in CONSTANT:
        for seed in seeds:
            yield Run(workload.name, 60.0, OURS, seed)


def peer_names() -> tuple[str, ...]:
    """Return the names of all peers, without measuring a capacity."""
    return tuple(peers(Truth(1, 1, 1)))


@lru_cache(maxsize=4)
def _traffic(workload: str, seed: int) -> Traffic:
    return WORKLOADS[workload].make(np.random.default_rng(1000 + seed))


def policy_of(run: Run, oracle: Oracle, workload: Workload) -> Policy:
    if run.policy == OURS:
        return Ours(run.prior, has_router=run.routing is Routing.ROUTER)
    if run.policy == ORACLE:
        return oracle
    return peers(truth_of(workload))[run.policy]


def simulate(run: Run) -> tuple[Simulation, Policy]:
    """Simulate the run. Return the simulation and the policy."""
    workload, traffic = WORKLOADS[run.workload], _traffic(run.workload, run.seed)
    oracle = Oracle(workload, traffic, run.cold_start)
    # The outage is while the load falls from its peak. A policy that mistakes missing metrics for
    # an idle service does the most harm at that time.
    hidden = 0.3 * traffic.seconds
    scenario = Scenario(
        run.cold_start,
        run.seed,
        oracle.replicas[0],
        outage=(hidden, hidden + OUTAGE_SECONDS) if run.event == "outage" else None,
        never_ready=2 if run.event == "never-ready" else None,
        hung_at=round(HUNG_SHARE * traffic.seconds) if run.event == "hung" else None,
        restart=_restart(workload) if run.event == "restart" else None,
    )
    if workload.first_replicas is not None:
        scenario = replace(scenario, initial_replicas=workload.first_replicas)
    policy = policy_of(run, oracle, workload)
    return Simulation(workload, traffic, scenario, run.routing).run(policy), policy


def _restart(workload: Workload) -> tuple[float, float] | None:
    if workload.burst_at is None:
        return None
    gone, back = RESTART_SECONDS
    return workload.burst_at + gone, workload.burst_at + back


def result_of(run: Run) -> Result:
    """Simulate the run, and return its figures."""
    simulation, _ = simulate(run)
    workload = simulation.workload
    counted = simulation.counted
    work = float(np.sum(counted)) / truth_of(workload).capacity / 3600
    history = np.array(simulation.history)
    outage = simulation.scenario.outage
    lost = 0
    if outage:
        before = history[history[:, 0] < outage[0]][-1, 1]
        inside = history[(history[:, 0] >= outage[0]) & (history[:, 0] < outage[1])]
        lost = int(max(before - np.min(inside[:, 1]), 0))
    return Result(
        run,
        simulation.gpu_hours,
        simulation.attainment_percent,
        simulation.events,
        int(np.max(history[:, 1])),
        100 * work / simulation.gpu_hours,
        0.0 if workload.burst_at is None else simulation.recovery_seconds(workload.burst_at),
        simulation.cut,
        lost,
        simulation.scale_ups,
    )

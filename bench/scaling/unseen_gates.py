"""Compares the figures of the unseen workloads with the limits of their gates."""

import math
from collections.abc import Iterable

from scaling.cliff import MOST_FALL, Finding
from scaling.gates import Gate
from scaling.runs import ORACLE, OURS, SEEDS, Result
from scaling.unseen import CONSTANT, UNSEEN

REACHABLE_PERCENT = 95.0
"""Attainment of the oracle from which ours is judged."""


def unseen_gates(results: Iterable[Result]) -> list[Gate]:
    """Return the gates of the unseen workloads.

    Each workload counts with one value in `unseen_slo`: the lowest of its seeds. A workload without
    results makes the gates miss.
    """
    every = list(results)
    events = {workload.name: workload.event for workload in UNSEEN}
    by_key = {
        (r.run.workload, r.run.policy, r.run.seed): r
        for r in every
        if r.run.event == events.get(r.run.workload, "")
    }
    undisturbed = {
        (r.run.workload, r.run.seed): r for r in every if r.run.policy == OURS and not r.run.event
    }
    names = [workload.name for workload in UNSEEN]
    peers = sorted({policy for _, policy, _ in by_key} - {OURS, ORACLE})
    first = SEEDS[0]

    def of(name: str, policy: str, seed: int) -> Result | None:
        return by_key.get((name, policy, seed))

    reached = [
        min(_attained(of(name, OURS, seed)) for seed in SEEDS)
        for name in names
        if not _attained(of(name, ORACLE, first)) < REACHABLE_PERCENT
    ]
    hours = [
        sum(_hours(of(name, OURS, seed)) for name in names)
        / sum(_hours(of(name, ORACLE, seed)) for name in names)
        for seed in SEEDS
    ]
    dominated = [
        (name, peer)
        for name in names
        for peer in peers
        if _dominates(of(name, peer, first), of(name, OURS, first))
    ]

    def loss(name: str) -> tuple[float, ...]:
        """Return the points of attainment that the disturbance of a workload costs."""
        return tuple(
            _attained(undisturbed.get((name, seed))) - _attained(of(name, OURS, seed))
            for seed in SEEDS
        )

    def most_scale_ups(seed: int) -> float:
        found = [undisturbed.get((workload.name, seed)) for workload in CONSTANT]
        counts = [float(it.scale_ups) for it in found if it is not None]
        return max(counts) if len(counts) == len(found) else math.nan

    for name, peer in dominated:
        print(f"dominated: {name} by {peer}")
    is_compared = bool(peers) and all(of(name, OURS, first) for name in names)
    cells = {name for name, _ in dominated}
    return [
        Gate("unseen_dominated", 0, False, "", (float(len(cells)),) if is_compared else ()),
        Gate("unseen_slo", 90, True, "%", tuple(reached)),
        Gate("unseen_gpu_hours_vs_oracle", 1.3, False, "", tuple(hours)),
        Gate("constant_load_events", 2, False, "", tuple(map(most_scale_ups, SEEDS))),
        Gate("recovery_after_restart", 2, False, "pt", loss("restart-in-burst")),
        Gate("hung_replica", 3, False, "pt", loss("hung-replica")),
    ]


def cliff_gates(findings: list[Finding]) -> list[Gate]:
    """Return the gates of the search for cliffs, each with the worst case as its value."""
    fall, error = max(it.fall for it in findings), max(it.error for it in findings)
    return [
        Gate("cliff", 100 * MOST_FALL, False, "%", (100 * fall,)),
        Gate("cliff_formula_error", 1, False, "%", (100 * error,)),
    ]


def _attained(result: Result | None) -> float:
    return math.nan if result is None else result.attainment_percent


def _hours(result: Result | None) -> float:
    return math.nan if result is None else result.gpu_hours


def _dominates(peer: Result | None, ours: Result | None) -> bool:
    if peer is None or ours is None:
        return False
    is_cheaper = peer.gpu_hours < ours.gpu_hours
    return is_cheaper and peer.attainment_percent > ours.attainment_percent

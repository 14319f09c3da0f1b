"""Compares the figures of many runs with the limits of the gates."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scaling.runs import GATE_COLD_STARTS, ORACLE, OURS, PRIORS, SEEDS, Result, gate_routing
from scaling.workloads import GATE_WORKLOADS

CELLS = tuple((w.name, cold) for w in GATE_WORKLOADS for cold in GATE_COLD_STARTS)
FEWEST_PERCENT = 85.0
"""Minimum mean SLO attainment, in percent, of a peer that may count as the best one."""


@dataclass(frozen=True)
class Gate:
    """One figure: its limit, and its value for each seed."""

    name: str
    limit: float
    is_at_least: bool
    unit: str
    values: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """PASS when every seed meets the limit, FAIL when none does or a value is missing, else
        UNDECIDED.
        """
        if not self.values or any(math.isnan(value) for value in self.values):
            return "FAIL"
        met = [v >= self.limit if self.is_at_least else v <= self.limit for v in self.values]
        return "PASS" if all(met) else "UNDECIDED" if any(met) else "FAIL"

    @property
    def line(self) -> str:
        sign = ">=" if self.is_at_least else "<="
        missing = not self.values or any(math.isnan(value) for value in self.values)
        mean = "missing" if missing else f"{sum(self.values) / len(self.values):.3f}{self.unit}"
        return f"GATE {self.name} {mean} {sign}{self.limit:g}{self.unit} {self.verdict}"


class Figures:
    """Results with the routing of the gates, by cell, policy, seed and prior."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.results = tuple(r for r in results if r.run.routing is gate_routing(r.run.policy))
        self._by_key = {
            (r.run.workload, r.run.cold_start, r.run.policy, r.run.seed, r.run.prior): r
            for r in self.results
            if not r.run.event
        }

    def over_cells(
        self, policy: str, seed: int, figure: Callable[[Result], float], prior: float = 1.0
    ) -> list[float]:
        """Return the figure in each of the gate cells. It is NaN where the run is missing."""
        rows = [self._by_key.get((*cell, policy, seed, prior)) for cell in CELLS]
        return [math.nan if row is None else figure(row) for row in rows]

    def peers(self) -> list[str]:
        return sorted({r.run.policy for r in self.results} - {OURS, ORACLE})


def gpu_hours(result: Result) -> float:
    return result.gpu_hours


def attainment(result: Result) -> float:
    return result.attainment_percent


def events(result: Result) -> float:
    return float(result.events)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def best_peer(figures: Figures) -> str | None:
    """Return the peer with the fewest GPU-hours among those with at least FEWEST_PERCENT
    attainment.
    """
    serving = [
        name
        for name in figures.peers()
        if mean(figures.over_cells(name, SEEDS[0], attainment)) >= FEWEST_PERCENT
    ]
    hours = {name: sum(figures.over_cells(name, SEEDS[0], gpu_hours)) for name in serving}
    return min(hours, key=hours.__getitem__) if hours else None


def dominated_cells(figures: Figures) -> list[tuple[tuple[str, float], str]]:
    """Return each cell in which a peer needs fewer GPU-hours and attains the SLO more often than
    our policy, with the name of the peer.
    """
    hours = figures.over_cells(OURS, SEEDS[0], gpu_hours)
    share = figures.over_cells(OURS, SEEDS[0], attainment)
    found = []
    for name in figures.peers():
        their_hours = figures.over_cells(name, SEEDS[0], gpu_hours)
        their_share = figures.over_cells(name, SEEDS[0], attainment)
        for i, cell in enumerate(CELLS):
            if their_hours[i] < hours[i] and their_share[i] > share[i]:
                found.append((cell, name))
    return found


def gates(results: Iterable[Result]) -> list[Gate]:
    """Return every gate, in the order of the report."""
    figures = Figures(results)
    ours = [r for r in figures.results if r.run.policy == OURS]

    def per_seed(value: Callable[[int], float]) -> tuple[float, ...]:
        return tuple(value(seed) for seed in SEEDS)

    def against_oracle(figure: Callable[[Result], float]) -> tuple[float, ...]:
        return per_seed(
            lambda seed: (
                sum(figures.over_cells(OURS, seed, figure))
                / sum(figures.over_cells(ORACLE, seed, figure))
            )
        )

    def recovery(cold_start: float) -> tuple[float, ...]:
        cell = CELLS.index(("burst", cold_start))
        return per_seed(
            lambda seed: figures.over_cells(OURS, seed, lambda r: r.recovery_seconds)[cell]
        )

    def prior_loss(seed: int) -> float:
        attained = [mean(figures.over_cells(OURS, seed, attainment, prior)) for prior in PRIORS]
        return math.nan if any(map(math.isnan, attained)) else attained[0] - min(attained)

    def least(seed: int) -> float:
        cells = figures.over_cells(OURS, seed, attainment)
        return math.nan if any(map(math.isnan, cells)) else min(cells)

    peer = best_peer(figures)
    first = SEEDS[0]
    versus_peer = (
        ()
        if peer is None
        else (
            sum(figures.over_cells(OURS, first, gpu_hours))
            / sum(figures.over_cells(peer, first, gpu_hours)),
        )
    )
    complete = not math.isnan(sum(figures.over_cells(OURS, first, gpu_hours)))
    dominated = {cell for cell, _ in dominated_cells(figures)}
    compared = complete and bool(figures.peers())
    lost = tuple(float(r.replicas_lost) for r in ours if r.run.event == "outage")
    return [
        Gate("gpu_hours_vs_oracle", 1.20, False, "", against_oracle(gpu_hours)),
        Gate(
            "slo_mean",
            94,
            True,
            "%",
            per_seed(lambda s: mean(figures.over_cells(OURS, s, attainment))),
        ),
        Gate("slo_min", 70, True, "%", per_seed(least)),
        Gate("gpu_hours_vs_best_peer", 0.70, False, "", versus_peer),
        Gate("cells_dominated", 0, False, "", (float(len(dominated)),) if compared else ()),
        Gate("burst_recovery_60", 125, False, "s", recovery(60.0)),
        Gate("burst_recovery_180", 275, False, "s", recovery(180.0)),
        Gate("scale_events_vs_oracle", 1.2, False, "", against_oracle(events)),
        Gate("requests_cut", 0, False, "", (float(sum(r.cut for r in ours)),) if complete else ()),
        Gate("outage_replicas_lost", 0, False, "", lost),
        Gate("wrong_prior_slo_loss", 2, False, "pt", per_seed(prior_loss)),
    ]

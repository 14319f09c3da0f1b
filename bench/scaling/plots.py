"""Draws load, replicas, utilization and SLO attainment of a run over time, one file per cell."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from scaling.engine import Array
from scaling.oracle import offered_load
from scaling.runs import GATE_COLD_STARTS, ORACLE, OURS, SEEDS, Run, simulate
from scaling.simulation import Simulation
from scaling.workloads import GATE_WORKLOADS, Workload

BUCKET_SECONDS = 30
COLORS = {OURS: "tab:blue", ORACLE: "tab:gray", "llm-d-concurrency-tuned": "tab:orange"}


def draw_all(folder: Path) -> None:
    """Draw one plot for each workload and cold start of the gates."""
    folder.mkdir(exist_ok=True)
    for workload in GATE_WORKLOADS:
        for cold_start in GATE_COLD_STARTS:
            draw(workload, cold_start, folder)


def draw(workload: Workload, cold_start: float, folder: Path) -> None:
    """Draw the runs of our policy, the oracle and a strong peer into one plot."""
    figure, (replicas, utilization, attainment) = plt.subplots(3, 1, sharex=True, figsize=(9, 8))
    for policy, color in COLORS.items():
        simulation, _ = simulate(Run(workload.name, cold_start, policy, SEEDS[0]))
        history = np.array(simulation.history)
        load = offered_load(workload, simulation.traffic)
        if policy == OURS:
            replicas.plot(load, color="black", linewidth=0.7, label="load in full replicas")
        replicas.step(history[:, 0], history[:, 2], color=color, label=f"{policy}: Ready")
        used = 100 * load[history[:, 0].astype(int) - 1] / np.maximum(history[:, 2], 1)
        utilization.plot(history[:, 0], np.minimum(used, 200), color=color, linewidth=0.7)
        times, shares = _attainment(simulation)
        attainment.plot(times, shares, color=color, linewidth=0.9)
    replicas.set_ylabel("replicas")
    replicas.legend(loc="upper right", fontsize="small")
    replicas.set_title(f"{workload.name}, cold start {cold_start:.0f} s")
    utilization.axhline(85, color="black", linewidth=0.5, linestyle=":")
    utilization.set_ylabel("load per Ready replica, %")
    attainment.axhline(95, color="black", linewidth=0.5, linestyle=":")
    attainment.set_ylabel("SLO attainment, %")
    attainment.set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(folder / f"{workload.name}-{cold_start:.0f}s.png", dpi=80)
    plt.close(figure)


def _attainment(simulation: Simulation) -> tuple[Array, Array]:
    arrival, met = simulation.requests.arrival, simulation.met
    bucket = (arrival // BUCKET_SECONDS).astype(int)
    count = np.bincount(bucket)
    good = np.bincount(bucket, weights=met)
    some = count > 0
    return np.flatnonzero(some) * BUCKET_SECONDS, 100 * good[some] / count[some]

"""Implements a clairvoyant policy, which knows the whole traffic, the capacity and the cold start.

The policy runs replicas at 85 % of their capacity. At any time, it has enough replicas for the
highest load in a span around that time. The span begins one cold start before that time, and ends
AHEAD_COLD_STARTS cold starts after it. The load is smoothed over 30 seconds. The policy is a
reference and not a bound, because it has too few replicas when the load jumps within the smoothing
window.
"""

import math

import numpy as np

from scaling.engine import Array
from scaling.simulation import Pod, Simulation
from scaling.truth import truth_of
from scaling.workloads import Traffic, Workload

UTILIZATION = 0.85
SMOOTHING_SECONDS = 30
AHEAD_COLD_STARTS = 1.25


def offered_load(workload: Workload, traffic: Traffic) -> Array:
    """Return the smoothed load of each second, as a number of fully used replicas."""
    step = workload.hardware.step
    held = float(np.mean(traffic.prompt) + np.mean(traffic.answer) / 2)
    work = (traffic.prompt - traffic.cached) * step.prefill + traffic.answer * (
        step.sequence + step.kv * held
    )
    work = work / np.mean(work)
    seconds = np.bincount(
        traffic.arrival.astype(int), weights=work, minlength=int(traffic.seconds) + 1
    )
    window = np.ones(SMOOTHING_SECONDS)
    smooth = np.convolve(seconds, window, "same") / np.convolve(
        np.ones(len(seconds)), window, "same"
    )
    return smooth / truth_of(workload).capacity


class Oracle:
    """Decides on replicas from the future load."""

    def __init__(
        self, workload: Workload, traffic: Traffic, cold_start: float, least: int = 1
    ) -> None:
        """`least` is the minimum number of replicas."""
        load = offered_load(workload, traffic)
        ahead, behind = math.ceil(AHEAD_COLD_STARTS * cold_start), math.ceil(cold_start)
        self.replicas = [
            min(
                max(
                    math.ceil(
                        float(np.max(load[max(t - behind, 0) : t + ahead + 1])) / UTILIZATION
                    ),
                    least,
                ),
                workload.max_replicas,
            )
            for t in range(len(load))
        ]

    def step(self, view: Simulation) -> int | None:
        return self.replicas[min(int(view.now), len(self.replicas) - 1)]

    def victim_order(self, view: Simulation, pods: list[Pod]) -> list[Pod]:
        return sorted(pods, key=lambda pod: int(view.fleet.running[pod.engine]))

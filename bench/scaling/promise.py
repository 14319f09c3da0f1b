"""Computes the rate that one engine sustains according to the product's formula, for comparison
with the truth.
"""

import numpy as np

from llmservice_operator.scaling.capacity import sustainable_rate
from llmservice_operator.scaling.conditions import RequestMix, ServiceLevelObjective
from llmservice_operator.scaling.traffic import TrafficMemory
from scaling.counters import counters_of
from scaling.hardware import SLO, Hardware
from scaling.truth import measure
from scaling.workloads import Workload

SEEN_SECONDS = 3000.0


def seen_mix(workload: Workload, rate: float) -> RequestMix:
    """Return the request mix that a replica reports when it serves the workload at this rate.

    Raises RuntimeError if too few requests arrived.
    """
    traffic = workload.make(np.random.default_rng(5))
    seen = measure(workload, traffic, rate, SEEN_SECONDS).fleet
    mix = TrafficMemory(counters_of(seen, 0)).mix
    if mix is None:
        raise RuntimeError(f"too few requests in {SEEN_SECONDS:.0f} s to know the mix")
    return mix


def promised_rate(hardware: Hardware, mix: RequestMix, slo: ServiceLevelObjective = SLO) -> float:
    """Return the requests per second that the product's formula predicts for one engine."""
    return sustainable_rate(mix, hardware.step, hardware.limits, slo)


def mean_rate(hardware: Hardware, mix: RequestMix) -> float:
    """Return the highest rate, in requests per second, at which the MEAN ITL meets the SLO."""
    step = hardware.step
    work = mix.prompt_work(step) + (mix.answers.mean - 1) * mix.token_work(step)
    return (1 - step.fixed / (SLO.itl_seconds or np.inf)) / work

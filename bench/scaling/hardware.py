"""Defines the engines of the simulator.

Every coefficient is a roofline estimate, not a measurement.
"""

from dataclasses import dataclass

import numpy as np

from llmservice_operator.scaling.conditions import EngineLimits, ServiceLevelObjective
from llmservice_operator.scaling.hardware import hardware_class
from llmservice_operator.scaling.step_model import StepModel, prior_step_model
from scaling.engine import Array


@dataclass(frozen=True)
class Hardware:
    """One replica: its true step model, and the prior that the product computes from data
    sheets.
    """

    step: StepModel
    limits: EngineLimits
    prior: StepModel
    step_noise: float = 0.05
    """Standard deviation of the step durations around the model, as a share of the modelled
    duration."""

    @property
    def step_array(self) -> Array:
        return np.array([*self.step.coefficients, self.step_noise])

    @property
    def limits_array(self) -> Array:
        limits = self.limits
        return np.array(
            [limits.max_sequences, int(limits.kv_capacity_tokens), limits.max_step_tokens, 0]
        )


SLO = ServiceLevelObjective(ttft_seconds=0.5, itl_seconds=0.05, objective=0.95)


def slo_array(slo: ServiceLevelObjective) -> Array:
    """Return the limits of TTFT and ITL in seconds, infinite where there is none."""
    limits = (slo.ttft_seconds, slo.itl_seconds)
    return np.array([np.inf if limit is None else limit for limit in limits])


_EIGHT_BILLION = {"weight_bytes": 16e9, "parameters": 8e9, "kv_bytes_per_token": 131_072}

H100 = Hardware(
    StepModel(fixed=6.5e-3, prefill=35e-6, sequence=20e-6, kv=50e-9),
    EngineLimits(max_sequences=256, kv_capacity_tokens=420_000, max_step_tokens=1024),
    prior_step_model(hardware_class("NVIDIA-H100-80GB-HBM3"), **_EIGHT_BILLION),
)
"""Engine with an 8-billion-parameter model on one large accelerator."""

A10 = Hardware(
    StepModel(fixed=30e-3, prefill=160e-6, sequence=60e-6, kv=220e-9),
    EngineLimits(max_sequences=128, kv_capacity_tokens=40_000, max_step_tokens=256),
    prior_step_model(hardware_class("NVIDIA-A10"), **_EIGHT_BILLION),
)
"""Engine with an 8-billion-parameter model on a small accelerator, with little KV memory and slow
steps."""

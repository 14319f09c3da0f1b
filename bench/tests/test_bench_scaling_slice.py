"""Tests a small part of the bench: our formula, our policy and an outage."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from llmservice_operator.scaling.conditions import EngineLimits
from llmservice_operator.scaling.step_model import StepModel
from scaling.hardware import A10, H100, Hardware
from scaling.oracle import Oracle
from scaling.ours import Ours
from scaling.promise import promised_rate, seen_mix
from scaling.simulation import Scenario, Simulation
from scaling.truth import truth_of
from scaling.workloads import Generator, Traffic, Workload, lognormal, poisson


@dataclass(frozen=True)
class Mix:
    """Traffic of one kind at a constant rate. The class is frozen, so that a workload with this
    traffic can be a cache key.
    """

    prompt: float
    answer: float
    spread: float = 0.8

    def __call__(self, rng: Generator) -> Traffic:
        count = 6000
        arrival = np.sort(rng.uniform(0, 600, count))
        prompt = lognormal(rng, self.prompt, self.spread, 1, 8000, count)
        answer = lognormal(rng, self.answer, self.spread, 1, 4000, count)
        return Traffic(arrival, prompt, answer, np.zeros(count, np.int64), 600.0)


SLOW = replace(
    H100,
    step=StepModel(fixed=16e-3, prefill=500e-6, sequence=1.5e-3, kv=1e-6),
    limits=EngineLimits(max_sequences=32, kv_capacity_tokens=300_000, max_step_tokens=512),
)
"""Engine that behaves like a model on a CPU, with times scaled to the SLO. A prompt takes as long
as several steps."""


def _slots(count: int) -> Hardware:
    return replace(H100, limits=replace(H100.limits, max_sequences=count))


@pytest.mark.parametrize(
    ("hardware", "mix"),
    [
        pytest.param(H100, Mix(2000, 12), id="prefill-heavy, very short answers"),
        pytest.param(H100, Mix(3000, 60), id="prefill-heavy"),
        pytest.param(H100, Mix(800, 300), id="mixed"),
        pytest.param(H100, Mix(100, 600), id="decode-heavy"),
        pytest.param(H100, Mix(200, 1500, 1.2), id="bound by KV tokens"),
        pytest.param(_slots(32), Mix(24, 80, 0.3), id="bound by slots, short answers"),
        pytest.param(_slots(16), Mix(100, 300), id="bound by slots, long answers"),
        pytest.param(A10, Mix(200, 40), id="small accelerator, short answers"),
        pytest.param(A10, Mix(100, 250), id="small accelerator, decode-heavy"),
        pytest.param(A10, Mix(150, 12, 0.4), id="small accelerator, prefill-heavy"),
        pytest.param(SLOW, Mix(150, 12, 0.4), id="few long prompts break short answers"),
        pytest.param(SLOW, Mix(110, 40, 0.4), id="few long prompts among answers"),
        pytest.param(SLOW, Mix(24, 80, 0.4), id="every sequence counts"),
    ],
)
def test_the_formula_finds_the_capacity_that_simulation_measures(
    hardware: Hardware, mix: Mix
) -> None:
    """The effective utilization is a rate divided by the capacity, so the relative errors of the
    utilization and of the capacity are equal.
    """
    workload = Workload("mix", hardware, 1, mix)
    truth = truth_of(workload)

    formula = promised_rate(hardware, seen_mix(workload, 0.5 * truth.capacity))

    assert formula == pytest.approx(truth.capacity, rel=0.10)


def hill(rng: Generator) -> Traffic:
    """Return half an hour of traffic whose rate rises threefold and falls again."""
    seconds = 1800.0
    arrival = poisson(rng, lambda t: 30 - 15 * np.cos(2 * np.pi * t / seconds), 45, seconds)
    prompt = lognormal(rng, 1100, 1.0, 8, 8000, len(arrival))
    answer = lognormal(rng, 210, 0.8, 2, 1500, len(arrival))
    return Traffic(arrival, prompt, answer, np.zeros(len(arrival), np.int64), seconds)


HILL = Workload("hill", H100, 16, hill)


def simulate(policy: Ours | Oracle, **events: tuple[float, float] | int | None) -> Simulation:
    traffic = hill(np.random.default_rng(11))
    scenario = Scenario(60.0, 1, 2, **events)  # type: ignore[arg-type]
    return Simulation(HILL, traffic, scenario).run(policy)


@pytest.mark.parametrize("prior", [0.75, 1.0, 1.33])
def test_ours_serves_a_hill_for_about_what_a_clairvoyant_pays(prior: float) -> None:
    oracle = simulate(Oracle(HILL, hill(np.random.default_rng(11)), 60.0))

    ours = simulate(Ours(prior))

    assert ours.attainment_percent >= 97
    assert ours.gpu_hours <= 1.2 * oracle.gpu_hours
    assert ours.events <= 1.2 * oracle.events
    assert ours.cut == 0


def test_an_outage_of_the_metrics_loses_no_replica() -> None:
    seen = simulate(Ours(), outage=(1000.0, 1300.0))

    inside = [desired for at, desired, _, _ in seen.history if 1000 <= at < 1300]
    assert min(inside) == inside[0] == max(inside)


def test_a_pod_that_never_starts_freezes_nothing() -> None:
    seen = simulate(Ours(), never_ready=1)

    most_ready = max(ready for _, _, ready, _ in seen.history)
    assert most_ready >= 4
    assert seen.history[-1][1] < max(desired for _, desired, _, _ in seen.history)

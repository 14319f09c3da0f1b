"""Tests that the step model learns the true coefficients, and keeps its prior without data."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice_operator.scaling.hardware import MIB, hardware_class
from llmservice_operator.scaling.signals import StepSums
from llmservice_operator.scaling.step_model import (
    HardwareClass,
    StepModel,
    StepModelFit,
    prior_step_model,
)
from operator_support.scaling import TRUTH, step_sums


def mixed_steps(seed: int, count: int = 400) -> list[tuple[float, float, float]]:
    rng = random.Random(seed)
    return [
        (
            rng.choice([0.0, 0.0, 300.0, 1000.0]),
            n := float(rng.randint(1, 100)),
            n * rng.uniform(500, 2500),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0, 1.33, 2.0])
def test_a_wrong_prior_is_forgotten(factor: float) -> None:
    fit = StepModelFit(TRUTH.scaled(factor))
    for seed in range(12):
        fit = fit.learn(step_sums(mixed_steps(seed)), 5.0)

    assert fit.model.coefficients == pytest.approx(TRUTH.coefficients, rel=0.06)


def test_a_step_and_the_prior_are_weighted_by_their_errors() -> None:
    """The error of the prior is half its value; that of a measured step is a tenth."""
    prior, measured = replace(TRUTH, fixed=0.01), replace(TRUTH, fixed=0.02)

    fit = StepModelFit(prior).learn(step_sums([(0.0, 0.0, 0.0)], measured), 5.0)

    weights = {0.01: 1 / 0.005**2, 0.02: 1 / 0.002**2}
    mean = sum(value * weight for value, weight in weights.items()) / sum(weights.values())
    assert fit.model.fixed == pytest.approx(mean)


def test_what_was_learned_as_nothing_can_be_learned_later() -> None:
    small = TRUTH.scaled(0.01)
    fit = StepModelFit.after(replace(small, kv=0.0), TRUTH)
    assert fit.model == replace(small, kv=0.0)
    for seed in range(12):
        fit = fit.learn(step_sums(mixed_steps(seed), small), 5.0)

    assert fit.model.kv == pytest.approx(small.kv, rel=0.15)


def test_a_model_of_nothing_is_no_prior() -> None:
    assert StepModelFit.after(StepModel(0.0, 0.0, 0.0, 0.0), TRUTH).model == TRUTH


def test_nothing_seen_is_the_prior() -> None:
    prior = TRUTH.scaled(3)

    assert StepModelFit(prior).learn(StepSums(), 5.0).model == prior


def test_what_traffic_does_not_separate_stays_near_the_prior() -> None:
    """If sequences and KV tokens are always in one proportion, only their sum can be learned."""
    steps = [(0.0, float(n), 1000.0 * n) for n in range(1, 100)]

    model = StepModelFit(TRUTH.scaled(2)).learn(step_sums(steps), 5.0).model

    assert model.sequence + 1000 * model.kv == pytest.approx(
        TRUTH.sequence + 1000 * TRUTH.kv, rel=0.03
    )
    assert model.sequence > 0
    assert model.kv > 0


def test_a_changed_engine_is_learned_anew() -> None:
    fit = StepModelFit(TRUTH)
    for seed in range(60):
        fit = fit.learn(step_sums(mixed_steps(seed)), 5.0)
    slower = TRUTH.scaled(1.5)
    for seed in range(60, 960):
        fit = fit.learn(step_sums(mixed_steps(seed, 40), slower), 5.0)

    assert fit.model.prefill == pytest.approx(slower.prefill, rel=0.1)


@settings(max_examples=50)
@given(
    steps=st.lists(
        st.tuples(
            st.floats(0, 2048), st.floats(0, 256), st.floats(0, 400_000), st.floats(1e-4, 1.0)
        ),
        min_size=1,
        max_size=30,
    )
)
def test_coefficients_are_never_negative(
    steps: list[tuple[float, float, float, float]],
) -> None:
    total = [0.0] * 15
    for step in steps:
        terms = (1.0, *step)
        products = [terms[i] * terms[j] for i in range(5) for j in range(i, 5)]
        total = [a + b for a, b in zip(total, products, strict=True)]

    model = StepModelFit(TRUTH).learn(StepSums(tuple(total)), 5.0).model

    assert min(model.coefficients) >= 0


def test_the_prior_is_the_roofline() -> None:
    prior = prior_step_model(HardwareClass(2e12, 1e15), 16e9, 8e9, 131_072)

    assert prior.fixed == pytest.approx(8.8e-3)
    assert prior.prefill == pytest.approx(32e-6)
    assert prior.sequence == pytest.approx(32e-6)
    assert prior.kv == pytest.approx(65.5e-9, rel=0.01)


@pytest.mark.parametrize(
    ("product", "bandwidth"),
    [
        ("NVIDIA-H100-80GB-HBM3", 3.35e12),
        ("NVIDIA-H100-PCIe", 2.0e12),
        ("NVIDIA-A100-SXM4-80GB", 2.0e12),
        ("NVIDIA-A100-SXM4-40GB", 1.555e12),
        ("NVIDIA-L40S", 0.864e12),
        ("NVIDIA L4", 0.3e12),
        ("NVIDIA-A10G", 0.6e12),
        ("something new", 0.6e12),
        (None, 50e9),
    ],
)
def test_a_product_name_finds_its_data_sheet(product: str | None, bandwidth: float) -> None:
    assert hardware_class(product).memory_bytes_per_second == bandwidth


def test_accelerators_of_one_replica_add_up() -> None:
    assert hardware_class("NVIDIA-H100-80GB-HBM3", 4) == HardwareClass(
        4 * 3.35e12, 4 * 989e12, 4 * 81559 * MIB
    )


def test_step_sums_of_a_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="step sums are 15 numbers, not 3"):
        StepSums((1.0, 2.0, 3.0))


def test_moments_are_symmetric() -> None:
    sums = step_sums([(100.0, 3.0, 50.0)])

    assert sums.moment(1, 2) == sums.moment(2, 1) == 300
    assert sums.moment(4, 0) == sums.seconds


def test_a_step_model_scales_all_its_terms() -> None:
    assert StepModel(1, 2, 3, 4).scaled(2) == StepModel(2, 4, 6, 8)


def test_a_step_model_tells_how_long_steps_take() -> None:
    steps = step_sums([(100.0, 3.0, 50.0), (0.0, 4.0, 70.0)])

    assert StepModel(1, 2, 3, 4).seconds_of(steps) == 2 * 1 + 100 * 2 + 7 * 3 + 120 * 4

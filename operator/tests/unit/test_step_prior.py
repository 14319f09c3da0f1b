"""Tests the prior of the step model, which follows from the spec and data sheets."""

from typing import Any

import pytest

from llmservice_operator.desired.step_prior import UNKNOWN_PRIOR, prior_of
from llmservice_operator.scaling.step_model import StepModel
from operator_support.services import a_service

H100 = {"class": "H100"}
ONE_SIZE = "hf://Qwen/Qwen2.5-7B-Instruct"


def prior(uri: str = "hf://org/model", **spec: Any) -> StepModel:
    return prior_of(a_service({"model": {"uri": uri}, **spec}).spec)


def test_the_size_in_the_name_is_used() -> None:
    small, large = (
        prior("hf://org/llm-8B", accelerator=H100),
        prior("hf://org/llm-70B", accelerator=H100),
    )

    assert large.fixed == pytest.approx(small.fixed * 70 / 8)
    assert large.prefill == pytest.approx(small.prefill * 70 / 8)


def test_a_model_of_a_known_size_is_split_over_the_gpus_of_a_replica() -> None:
    one, four = (prior(ONE_SIZE, accelerator=H100 | {"count": count}) for count in (1, 4))

    assert four.fixed == pytest.approx(one.fixed / 4)


def test_a_model_of_unknown_size_fills_each_gpu_alike() -> None:
    one, four = (prior(accelerator=H100 | {"count": count}) for count in (1, 4))

    assert four == one == prior("hf://org/llm-8B", accelerator=H100)


def test_quantized_weights_are_read_faster() -> None:
    whole, half = (
        prior(accelerator=H100, engine=engine) for engine in ({}, {"quantization": "fp8"})
    )

    assert half.fixed == pytest.approx(whole.fixed / 2)
    assert half.prefill == whole.prefill


def test_the_gpu_is_that_of_the_class_or_of_the_node_label_that_the_pods_select() -> None:
    product = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}

    assert prior(template={"nodeSelector": product}) == prior(accelerator=H100)
    assert prior(accelerator={"class": "A10"}, template={"nodeSelector": product}) == (
        prior(accelerator={"class": "A10"})
    )
    assert prior() == UNKNOWN_PRIOR


def test_on_a_cpu_a_model_is_small_unless_its_name_says_otherwise() -> None:
    cpu = {"type": "cpu"}

    assert prior(accelerator=cpu) == prior("hf://Qwen/Qwen2.5-0.5B", accelerator=cpu)
    assert prior(accelerator=cpu).fixed > prior(accelerator=H100).fixed
    assert prior("hf://org/llm-3B", accelerator=cpu).fixed > prior(accelerator=cpu).fixed

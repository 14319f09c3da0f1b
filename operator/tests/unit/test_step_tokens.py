"""Tests the tokens per step that the operator derives from the ITL objective and the spec."""

from typing import Any

import pytest

from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.desired.step_tokens import (
    derived_step_tokens,
    largest_step,
    sequences_of,
    step_tokens_of,
)
from llmservice_operator.scaling.step_model import StepModel
from operator_support.services import a_service

QWEN = "hf://Qwen/Qwen2.5-7B-Instruct"


def tokens(uri: str = QWEN, **spec: Any) -> int | None:
    spec = {
        "model": {"uri": uri},
        "accelerator": {"class": "H100"},
        "slo": {"itlMilliseconds": 50},
        **spec,
    }
    return derived_step_tokens(a_service({key: it for key, it in spec.items() if it is not None}))


def test_a_step_of_a_7b_model_on_an_h100_keeps_50_ms() -> None:
    # A step takes 4.6 ms for the weights, and 28 µs for each prompt token.
    assert tokens() == 1600


def test_a_quicker_objective_or_a_slower_gpu_makes_the_step_smaller() -> None:
    assert (tokens(slo={"itlMilliseconds": 20}) or 0) < 1600
    assert tokens(accelerator={"class": "A10"}) == 256
    assert (tokens(engine={"quantization": "fp8"}) or 0) > 1600
    assert (tokens(accelerator={"class": "H100", "count": 2}) or 0) > 1600
    assert tokens(accelerator={"class": "NVIDIA-H100-80GB-HBM3"}) == 1600


@pytest.mark.parametrize("dtype", ["Float32", "float32"])
def test_weights_in_full_precision_make_the_step_smaller_however_they_are_spelled(
    dtype: str,
) -> None:
    assert tokens(engine={"dtype": dtype}) == 1408


def test_the_default_objective_of_autoscaling_is_used_and_a_disabled_one_is_not() -> None:
    assert tokens(slo=None, autoscaling={"maxReplicas": 2}) == 1600
    assert tokens(slo=None) is None
    assert tokens(slo={}, autoscaling={"maxReplicas": 2}) is None
    assert tokens(slo={"ttftMilliseconds": 500}) is None


@pytest.mark.parametrize(
    "spec",
    [
        {"accelerator": {}},
        {"accelerator": {"class": "GeForce-9000"}},
        {"accelerator": {"type": "cpu"}},
        {"uri": "hf://org/model"},
        {"uri": "hf://mistralai/Mixtral-8x7B-v0.1"},
        {"uri": "hf://Qwen/Qwen3-30B-A3B"},
        {"slo": {"itlMilliseconds": 1}},
        {"engine": {"batching": {"maxNumBatchedTokens": 4096}}},
        {"engine": {"batching": {"chunkedPrefill": False}}},
    ],
)
def test_nothing_is_derived_from_too_little_or_against_the_spec(spec: dict[str, Any]) -> None:
    assert tokens(**spec) is None


def test_every_request_gets_a_token() -> None:
    seats = {"batching": {"maxNumSeqs": 2048}}
    assert tokens(engine=seats) == 2048


def test_the_derived_step_is_an_argument_and_a_learned_one_is_not() -> None:
    spec = {
        "model": {"uri": QWEN},
        "accelerator": {"class": "H100"},
        "slo": {"itlMilliseconds": 50},
    }
    args = build_engine_args(a_service(spec), "0.32.0")
    assert "--max-num-batched-tokens=1600" in args
    learned = {"recommendations": [{"field": "f", "value": "640", "reason": "r"}]}
    assert build_engine_args(a_service(spec, status={"autoscaling": learned}), "0.32.0") == args


def test_no_step_keeps_an_itl_that_the_weights_alone_take() -> None:
    assert largest_step(StepModel(0.06, 0.00003, 0.0, 0.0), 50) is None
    assert largest_step(StepModel(0.0, 0.00001, 0.0, 0.0), 1000) == 8192


ADAPTERS = {"model": {"uri": QWEN, "maxLoras": 2}}


def guessing(tokens: int, accelerator: str = "H100", **batching: Any) -> dict[str, Any]:
    """Return a spec with adapters and this number of speculative tokens."""
    return {
        **ADAPTERS,
        "accelerator": {"type": "cpu"} if accelerator == "cpu" else {"class": accelerator},
        "engine": {
            "batching": batching,
            "speculativeDecoding": {"method": "Ngram", "numSpeculativeTokens": tokens},
        },
    }


@pytest.mark.parametrize(
    ("spec", "sequences"),
    [
        (guessing(3, maxNumSeqs=16, maxNumBatchedTokens=64), 16),
        (guessing(3, maxNumBatchedTokens=1024 * 4), None),
        (guessing(3, maxNumBatchedTokens=1024 * 4 - 1), 256),
        (guessing(3, maxNumBatchedTokens=100), 25),
        (guessing(3, maxNumBatchedTokens=1024 * 4, performanceMode="Throughput"), 512),
        (guessing(7), None),
        (guessing(8), 2048 // 9),
        (guessing(8, performanceMode="Throughput"), 4096 // 9),
        (guessing(7, "cpu"), None),
        (guessing(16, "cpu"), 2048 // 17),
        (guessing(7, "cpu", maxNumBatchedTokens=128 * 8), None),
        (guessing(7, "cpu", maxNumBatchedTokens=80), 10),
        ({**guessing(8), "model": {"uri": QWEN}}, None),
        ({**ADAPTERS, "engine": {"batching": {"maxNumBatchedTokens": 8}}}, None),
    ],
)
def test_the_guesses_of_all_requests_with_adapters_fit_into_a_step(
    spec: dict[str, Any], sequences: int | None
) -> None:
    assert sequences_of(a_service(spec)) == sequences


@pytest.mark.parametrize("itl", [6, 10, 50, 500])
@pytest.mark.parametrize("batching", [{}, {"maxNumSeqs": 400}])
def test_a_step_that_the_operator_derives_has_room_for_the_guesses_as_well(
    itl: int, batching: dict[str, int]
) -> None:
    spec = guessing(3)
    spec["engine"]["batching"] = batching
    service = a_service({**spec, "slo": {"itlMilliseconds": itl}})
    derived = step_tokens_of(service)
    assert derived is not None
    # 1024 is the engine's default on an H100.
    assert derived >= 4 * (sequences_of(service) or 1024)

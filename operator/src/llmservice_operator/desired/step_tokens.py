"""Derives the number of tokens and of requests in one engine step.

A prefill in the same step as other responses delays each of them by the whole step. With an ITL
limit, a step must not take longer than that limit.

With adapters and speculative decoding, the engine starts only if a step has room for all guesses of
the maximum number of requests.
"""

from __future__ import annotations

from typing import Final

from llmservice_operator.api.accelerator import AcceleratorType
from llmservice_operator.api.batching import (
    LEAST_STEP_TOKENS,
    SEQUENCES,
    SEQUENCES_ON_A_CPU,
    SEQUENCES_ON_A_LARGE_GPU,
)
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.step_prior import parameters_in, prior_of
from llmservice_operator.scaling.hardware import is_known
from llmservice_operator.scaling.step_model import StepModel

STEP: Final = 64
"""The size of a step, in tokens, is rounded down to a multiple of this number."""
SMALLEST, LARGEST = 256, 8192
"""Bounds of a step in tokens. With fewer tokens, the GPU is not fully used. The upper bound is the
engine's default on a large GPU, such as an H100."""


def largest_step(model: StepModel, itl_milliseconds: float) -> int | None:
    """Return the number of tokens of the longest step within the ITL, at least SMALLEST and at most
    LARGEST.

    Returns None if an empty step exceeds the ITL, or if the duration of a step does not depend on
    its prompt tokens.
    """
    seconds = itl_milliseconds / 1000 - model.fixed
    if seconds <= 0 or model.prefill <= 0:
        return None
    return int(min(max(seconds / model.prefill // STEP * STEP, SMALLEST), LARGEST))


def derived_step_tokens(service: LLMService) -> int | None:
    """Return the number of tokens of a step, derived from the spec alone.

    A calibration is not used, because each change of it would restart the pods. The result is None
    in each of these cases:

    - There is no ITL limit, or an empty step exceeds it.
    - The spec sets the number, or disables chunked prefill.
    - accelerator.class is not a known GPU, or the model's name contains no size.
    """
    spec = service.spec
    itl = spec.objectives.itl_milliseconds
    batching = spec.engine.batching
    is_decided = batching is not None and (
        batching.max_num_batched_tokens is not None or batching.chunked_prefill is False
    )
    if itl is None or is_decided or parameters_in(spec.model.uri) is None:
        return None
    gpu_class = spec.accelerator.gpu_class
    if spec.accelerator.type is AcceleratorType.CPU or not (gpu_class and is_known(gpu_class)):
        return None
    tokens = largest_step(prior_of(spec), itl)
    if tokens is None:
        return None
    return max(tokens, ((batching and batching.max_num_seqs) or 1) * _tokens_of_a_request(service))


def step_tokens_of(service: LLMService) -> int | None:
    """Return the number of tokens of a step: that of the spec, or the derived one."""
    batching = service.spec.engine.batching
    chosen = None if batching is None else batching.max_num_batched_tokens
    return chosen or derived_step_tokens(service)


def sequences_of(service: LLMService) -> int | None:
    """Return the maximum number of concurrent requests of an engine.

    Returns None if the spec sets none and the engine's default fits into a step on every GPU.
    Source of the condition: vLLM 0.30 to 0.33, EngineArgs.create_engine_config.
    """
    batching = service.spec.engine.batching
    if batching is not None and batching.max_num_seqs is not None:
        return batching.max_num_seqs
    each = _tokens_of_a_request(service)
    factor = 2 if batching is not None and batching.performance_mode == "Throughput" else 1
    on_a_cpu = service.spec.accelerator.type is AcceleratorType.CPU
    least, most = (
        (SEQUENCES_ON_A_CPU, SEQUENCES_ON_A_CPU)
        if on_a_cpu
        else (SEQUENCES, SEQUENCES_ON_A_LARGE_GPU)
    )
    tokens = step_tokens_of(service)
    if tokens is None:
        # The engine's default for the tokens of a step grows with that for the requests.
        tokens = LEAST_STEP_TOKENS * factor
        most = least
    if each == 1 or tokens >= most * factor * each:
        return None
    return min(least * factor, tokens // each)


def _tokens_of_a_request(service: LLMService) -> int:
    """Return the number of tokens for which the engine requires room in a step, for each request.

    The guesses count only with adapters, because the engine checks them only then.
    """
    speculation = service.spec.engine.speculative_decoding
    if speculation is None or not service.spec.model.takes_adapters:
        return 1
    return speculation.num_speculative_tokens + 1

"""Derives the number of tokens that one engine step may compute, so that a prompt does not delay
other responses.

A prefill in the same step as other responses delays each of them by the whole step. With an ITL
limit, a step must not take longer than that limit.
"""

from __future__ import annotations

from typing import Final

from llmservice_operator.api.accelerator import AcceleratorType
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
    # Each request gets at least one token in a step.
    return max(tokens, (batching and batching.max_num_seqs) or 0)

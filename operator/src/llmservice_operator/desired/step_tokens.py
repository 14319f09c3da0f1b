"""How many tokens one engine step may compute, so that a prompt does not hold up other answers.

A prefill that shares a step with answers delays each of them by the whole step. With an ITL to
keep, a step must not take longer than that.
"""

from __future__ import annotations

import re
from typing import Final

from llmservice_operator.api.accelerator import AcceleratorType
from llmservice_operator.api.engine import Engine
from llmservice_operator.api.spec import LLMService
from llmservice_operator.scaling.hardware import hardware_class, is_known
from llmservice_operator.scaling.step_model import StepModel, prior_step_model

STEP: Final = 64
"""Tokens to which a step is rounded down."""
SMALLEST, LARGEST = 256, 8192
"""Below, the GPU idles; above, the engine's own default on its largest GPUs."""

_PARAMETERS: Final = re.compile("(?<![A-Za-z0-9.])([0-9]+(?:[.][0-9]+)?)[bB](?![A-Za-z0-9])")
_ACTIVE_PARAMETERS: Final = re.compile("-[aA][0-9]+[bB](?![A-Za-z0-9])")
"""Of a mixture of experts, whose steps cost less than its size says."""

_BYTES: Final = {"fp8": 1.0, "awq": 0.5, "awq_marlin": 0.5, "gptq": 0.5, "gptq_marlin": 0.5}
_FULL_PRECISION_BYTES, _HALF_PRECISION_BYTES = 4.0, 2.0


def largest_step(model: StepModel, itl_milliseconds: float) -> int | None:
    """Return the tokens of the longest step within the ITL; None where not even an empty one is."""
    seconds = itl_milliseconds / 1000 - model.fixed
    if seconds <= 0 or model.prefill <= 0:
        return None
    return int(min(max(seconds / model.prefill // STEP * STEP, SMALLEST), LARGEST))


def derived_step_tokens(service: LLMService) -> int | None:
    """Return the tokens of a step that follow from the spec alone, None if too little is known.

    From the data sheet of accelerator.class and the size in the model's name; never from what was
    learned, for that would restart pods.
    """
    spec = service.spec
    itl = spec.objectives.itl_milliseconds
    batching = spec.engine.batching
    parameters = _parameters(spec.model.uri)
    is_decided = batching is not None and (
        batching.max_num_batched_tokens is not None or batching.chunked_prefill is False
    )
    if itl is None or is_decided or parameters is None:
        return None
    if spec.accelerator.type is AcceleratorType.CPU or spec.accelerator.gpu_class is None:
        return None
    if not is_known(spec.accelerator.gpu_class):
        return None
    hardware = hardware_class(spec.accelerator.gpu_class, spec.tensor_parallelism)
    weight_bytes = parameters * _bytes_per_parameter(spec.engine)
    tokens = largest_step(prior_step_model(hardware, weight_bytes, parameters, 0.0), itl)
    if tokens is None:
        return None
    # Each request gets a token in a step.
    return max(tokens, (batching and batching.max_num_seqs) or 0)


def _parameters(uri: str) -> float | None:
    """Return the number of parameters that the model's name gives, such as 7B."""
    found = _PARAMETERS.search(uri)
    if found is None or _ACTIVE_PARAMETERS.search(uri):
        return None
    return float(found[1]) * 1e9


def _bytes_per_parameter(engine: Engine) -> float:
    if engine.quantization in _BYTES:
        return _BYTES[engine.quantization]
    return _FULL_PRECISION_BYTES if engine.dtype == "Float32" else _HALF_PRECISION_BYTES

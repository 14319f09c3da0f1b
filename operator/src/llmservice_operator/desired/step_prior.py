"""Estimates the duration of an engine step before any was measured, from the spec and data sheets.

The GPU comes from `accelerator.class`, or from the node label that the pods select. The size of the
model comes from its name. A wrong prior reduces the accuracy for the first minute of traffic.
"""

from __future__ import annotations

import re
from typing import Final

from llmservice_operator.api.accelerator import AcceleratorType
from llmservice_operator.api.engine import Engine
from llmservice_operator.api.spec import LLMServiceSpec
from llmservice_operator.scaling.hardware import hardware_class, is_known
from llmservice_operator.scaling.step_model import HardwareClass, StepModel, prior_step_model

UNKNOWN_GPU: Final = "unknown"
"""Product name without a data sheet. Such a product is treated as a small GPU."""
GPU_PRODUCT_LABELS: Final = ("nvidia.com/gpu.product", "amd.com/gpu.product-name")
"""Node labels by which a service may choose its GPUs."""

GUESSED_PARAMETERS: Final = 8e9
"""Assumed number of parameters on each GPU, for a model without a size in its name. 8 billion is a
common size."""
GUESSED_PARAMETERS_ON_CPU: Final = 0.5e9
GUESSED_KV_BYTES_PER_TOKEN: Final = 131072.0

_PARAMETERS: Final = re.compile("(?<![A-Za-z0-9.])([0-9]+(?:[.][0-9]+)?)[bB](?![A-Za-z0-9])")
_ACTIVE_PARAMETERS: Final = re.compile("-[aA][0-9]+[bB](?![A-Za-z0-9])")
"""Pattern of the number of active parameters in the name of a mixture of experts. The steps of such
a model take less time than the model's size suggests."""

_BYTES: Final = {"fp8": 1.0, "awq": 0.5, "awq_marlin": 0.5, "gptq": 0.5, "gptq_marlin": 0.5}
_FULL_PRECISION_BYTES, _HALF_PRECISION_BYTES = 4.0, 2.0


def prior_of(spec: LLMServiceSpec) -> StepModel:
    """Return the step model that the spec and the data sheets suggest.

    The spec must contain the fields of its accelerator class. An unknown size or GPU is
    guessed.
    """
    named = parameters_in(spec.model.uri)
    if spec.accelerator.type is AcceleratorType.CPU:
        hardware, guessed = hardware_class(None), GUESSED_PARAMETERS_ON_CPU
    else:
        gpus = 1 if named is None else spec.tensor_parallelism
        hardware, guessed = (
            hardware_class(gpu_product(spec) or UNKNOWN_GPU, gpus),
            GUESSED_PARAMETERS,
        )
    return _prior(hardware, named or guessed, _bytes_per_parameter(spec.engine))


def _prior(hardware: HardwareClass, parameters: float, bytes_per_parameter: float) -> StepModel:
    return prior_step_model(
        hardware, bytes_per_parameter * parameters, parameters, GUESSED_KV_BYTES_PER_TOKEN
    )


def parameters_in(uri: str) -> float | None:
    """Return the number of parameters in the model's name, such as 7B; None for a mixture of
    experts and for a name without a size.
    """
    found = _PARAMETERS.search(uri)
    if found is None or _ACTIVE_PARAMETERS.search(uri):
        return None
    return float(found[1]) * 1e9


def gpu_product(spec: LLMServiceSpec) -> str | None:
    """Return the GPU's product name, if the class or the node selector gives it."""
    gpu_class = spec.accelerator.gpu_class
    if gpu_class is not None and is_known(gpu_class):
        return gpu_class
    chosen = (spec.template.node_selector.get(label) for label in GPU_PRODUCT_LABELS)
    return next(filter(None, chosen), None)


def _bytes_per_parameter(engine: Engine) -> float:
    if engine.quantization in _BYTES:
        return _BYTES[engine.quantization]
    return _FULL_PRECISION_BYTES if engine.dtype == "Float32" else _HALF_PRECISION_BYTES


UNKNOWN_PRIOR: Final = _prior(
    hardware_class(UNKNOWN_GPU), GUESSED_PARAMETERS, _HALF_PRECISION_BYTES
)
"""Prior for a spec that cannot be read."""

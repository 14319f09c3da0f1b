"""Bytes of a model's weights in the memory of its GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llmservice_operator.fit.model_shape import ModelShape

_BITS: Final = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F4": 4,
}
"""Mapping from the safetensors name of a number format to the bits of one number."""
_WHOLE_PRECISION: Final = frozenset({"F64", "F32", "F16", "BF16"})

_BITS_AT_LOAD: Final = {"fp8": 8}
"""Mapping from each quantization that the engine can apply during the load to the resulting bits of
one weight in a linear layer."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's stored parameters, counted by the safetensors name of their number format."""

    parameters: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    @property
    def stored_bytes(self) -> int:
        return sum(count * _BITS.get(kind, 16) // 8 for kind, count in self.parameters.items())


def weight_bytes(
    checkpoint: Checkpoint, shape: ModelShape, element_bytes: int, quantization: str | None
) -> int:
    """Return the bytes of all weights once they are loaded.

    The engine converts floating-point weights to the format in which it computes. It leaves the
    weights of a quantized model as they are stored. With `quantization`, it quantizes the linear
    layers of an unquantized model, but neither the embeddings nor the output layer.
    """
    if shape.is_quantized:
        return checkpoint.stored_bytes
    loaded = sum(
        count * (element_bytes if kind in _WHOLE_PRECISION else _BITS.get(kind, 16) / 8)
        for kind, count in checkpoint.parameters.items()
    )
    bits = _BITS_AT_LOAD.get(quantization or "")
    if bits is None:
        return int(loaded)
    outside = min(2 * shape.vocabulary * shape.hidden_size, checkpoint.total)
    linear = checkpoint.total - outside
    return int(loaded - linear * (element_bytes - bits / 8))

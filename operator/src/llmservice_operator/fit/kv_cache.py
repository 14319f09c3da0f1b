"""Bytes of the KV cache, or of the state, of one request on one GPU, as vLLM reserves them.

vLLM stores the cache in blocks of 16 tokens, and divides the layers of a model into groups. A block
contains the cache of all layers of one group, so a request needs blocks for each group. The layers
of a group are of one kind: layers that keep the whole context, or layers with a window. If a model
has both kinds, all groups have the same number of layers, and the last group of a kind may be
padded. Source: vLLM 0.32, v1/core/kv_cache_utils.py.
"""

from collections import Counter
from math import ceil

from llmservice_operator.fit.model_shape import ModelShape, StateShape

BLOCK_TOKENS = 16
"""Number of tokens in a block of the KV cache. It is the engine's default on NVIDIA GPUs."""

_CLOSE = 1.5
"""Limit on the ratio between the numbers of layers of the most frequent and of the rarest kind.
Layers of one kind have the same window, or none. The engine divides all layers into groups of equal
size. Below the limit, a group has as many layers as the most frequent kind, and otherwise as many
as the rarest kind."""


def token_bytes(shape: ModelShape, tensor: int, element_bytes: int) -> int:
    """Return the bytes that one layer stores for one token on each of `tensor` GPUs."""
    if shape.latent_size is not None:
        return shape.latent_size * element_bytes
    return 2 * max(1, shape.kv_heads // tensor) * shape.head_size * element_bytes


def request_bytes(
    shape: ModelShape,
    tokens: int,
    *,
    in_flight_tokens: int,
    element_bytes: int,
    tensor: int = 1,
    pipeline: int = 1,
) -> int:
    """Return the bytes of a request of `tokens` tokens on one GPU.

    `in_flight_tokens` is the number of tokens that the engine may have scheduled but not finished.
    Layers with a window keep these tokens in addition to the window.
    """
    layers = Counter(shape.windows[: ceil(len(shape.windows) / pipeline)])
    group = _layers_of_a_group(layers)
    blocks = sum(
        ceil(count / group) * _blocks(window, tokens, in_flight_tokens)
        for window, count in layers.items()
    )
    return blocks * group * BLOCK_TOKENS * token_bytes(shape, tensor, element_bytes)


def _layers_of_a_group(layers: Counter[int | None]) -> int:
    least, most = min(layers.values()), max(layers.values())
    return most if most < _CLOSE * least else least


def _blocks(window: int | None, tokens: int, in_flight_tokens: int) -> int:
    if window is None:
        return ceil(tokens / BLOCK_TOKENS)
    # A window may begin in the middle of a block, so it can extend into one more block.
    return ceil(min(window - 1 + in_flight_tokens, tokens) / BLOCK_TOKENS) + 1


def state_bytes(
    state: StateShape,
    *,
    convolution_element_bytes: int,
    element_bytes: int,
    caches_prefixes: bool,
    tensor: int = 1,
    pipeline: int = 1,
) -> int:
    """Return the bytes of the state of one request on one GPU.

    The state of a layer consists of the last inputs of its convolution and of the state of its
    channels, whose elements have `convolution_element_bytes` and `element_bytes`. With a prefix
    cache, a request also keeps the state before its last step and, in Mamba 2, the state in the
    middle of a step. Source: vLLM 0.32, mamba_utils.py and mamba_mixer2.py in
    model_executor/layers/mamba, and MambaSpec in v1/kv_cache_interface.py.
    """
    copies = (3 if state.groups else 2) if caches_prefixes else 1
    # The GPUs share the groups, or each GPU has a copy of the only group.
    groups = state.groups if state.groups % tensor == 0 else tensor
    inputs = (state.channels + 2 * groups * state.size) // tensor * (state.kernel - 1)
    elements = state.channels // tensor * state.size
    copy = inputs * convolution_element_bytes + elements * element_bytes
    return ceil(state.layers / pipeline) * copies * copy

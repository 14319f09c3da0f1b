"""Bytes of the KV cache, or of the state, of one request on one GPU, as vLLM reserves them.

vLLM stores the cache in blocks of 16 tokens, and divides the layers of a model into groups. A block
contains the cache of all layers of one group, so a request needs blocks for each group. The layers
of a group are of one kind: layers that keep the whole context, or layers with a window. If a model
has both kinds, all groups have the same number of layers, and the last group of a kind may be
padded. Source: vLLM 0.32, v1/core/kv_cache_utils.py.

If a model also has layers with a state of fixed size, these are a further kind. A block then
contains the cache of so many tokens that the state fits into the block too. Source: vLLM 0.32,
_align_hybrid_block_size in platforms/interface.py.
"""

from collections import Counter
from dataclasses import dataclass
from math import ceil

from llmservice_operator.fit.model_shape import ModelShape
from llmservice_operator.fit.states import StateShape

BLOCK_TOKENS = 16
"""Number of tokens in a block of the KV cache. It is the engine's default on NVIDIA GPUs. In a
model that also has states, the number is a multiple of it."""

_STATE = "state"
"""Kind of the layers with a state. The other kinds are a window in tokens, or None."""

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


@dataclass(frozen=True, slots=True)
class StateStorage:
    """How the engine stores the states of a request."""

    convolution_element_bytes: int
    """Bytes of an element of the last inputs of a convolution."""
    element_bytes: int
    """Bytes of an element of the state of a channel."""
    caches_prefixes: bool
    """Whether the engine caches prefixes. It then also keeps the state before the last step of a
    request."""
    keeps_middle: bool = True
    """Whether the engine also keeps the state in the middle of a step then, in the second version
    of Mamba."""

    def copies(self, state: StateShape) -> int:
        """Return the number of states that a layer keeps for a request."""
        if not self.caches_prefixes:
            return 1
        return 3 if state.is_mamba_2 and self.keeps_middle else 2

    def copy_bytes(self, state: StateShape, tensor: int) -> int:
        """Return the bytes of one state of a layer on each of `tensor` GPUs.

        Source: vLLM 0.32, mamba_utils.py and mamba_mixer2.py in model_executor/layers/mamba, and
        MambaSpec in v1/kv_cache_interface.py.
        """
        # The GPUs share the groups, or each GPU has a copy of the only group.
        groups = state.groups if state.groups % tensor == 0 else tensor
        inputs = (state.channels + 2 * groups * state.size) // tensor * (state.kernel - 1)
        elements = state.channels // tensor * state.size
        return inputs * self.convolution_element_bytes + elements * self.element_bytes


def request_bytes(
    shape: ModelShape,
    tokens: int,
    *,
    in_flight_tokens: int,
    element_bytes: int,
    storage: StateStorage,
    tensor: int = 1,
    pipeline: int = 1,
) -> int:
    """Return the bytes of a request of `tokens` tokens on one GPU.

    `in_flight_tokens` is the number of tokens that the engine may have scheduled but not finished.
    Layers with a window keep these tokens in addition to the window.
    """
    layers: Counter[int | str | None] = Counter(
        shape.windows[: ceil(len(shape.windows) / pipeline)]
    )
    token = token_bytes(shape, tensor, element_bytes)
    block = BLOCK_TOKENS
    copies = 0
    if (state := shape.state) is not None:
        layers[_STATE] = ceil(state.layers / pipeline)
        copy, copies = storage.copy_bytes(state, tensor), storage.copies(state)
        if not shape.windows:
            return layers[_STATE] * copies * copy
        block *= ceil(copy / (BLOCK_TOKENS * token))
    group = _layers_of_a_group(layers)
    blocks = sum(
        ceil(count / group)
        * (copies if isinstance(kind, str) else _blocks(kind, block, tokens, in_flight_tokens))
        for kind, count in layers.items()
    )
    return blocks * group * block * token


def _layers_of_a_group(layers: Counter[int | str | None]) -> int:
    least, most = min(layers.values()), max(layers.values())
    return most if most < _CLOSE * least else least


def _blocks(window: int | None, block: int, tokens: int, in_flight_tokens: int) -> int:
    """Return the number of blocks of `block` tokens for a request of `tokens` tokens."""
    if window is None:
        return ceil(tokens / block)
    # A window may begin in the middle of a block, so it can extend into one more block.
    return ceil(min(window - 1 + in_flight_tokens, tokens) / block) + 1

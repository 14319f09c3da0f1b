"""Reads the fields of a model's config.json that determine its memory.

The names of the fields are those of the transformers library. The layers of a model may keep keys
and values, latent vectors in place of both, or a state of fixed size. A model with layers of
another kind is refused, because its memory could only be guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llmservice_operator.fit.config_fields import UnknownShape, first_positive, number
from llmservice_operator.fit.states import STATE_KINDS, StateShape, layer_kinds, read_states

# By default, vLLM also keeps the whole context for layers with chunked attention. An environment
# variable can change that.
_WHOLE_CONTEXT: Final = frozenset({"full_attention", "attention", "chunked_attention"})
_WINDOWED: Final = "sliding_attention"

_OTHER_STATE: Final = {
    "layers_block_type": "layers of more than one kind",
    "hybrid_override_pattern": "layers of more than one kind",
    "layer_group_size": "layers of more than one kind",
    "linear_num_key_heads": "linear attention",
    "linear_attn_config": "linear attention",
    "ssm_cfg": "state-space layers",
    "mamba_d_state": "state-space layers",
    "state_size": "state-space layers",
}
"""Mapping from a field of config.json to the kind of layers that a model with this field has. The
formulas cover such layers only in the model types that `states` reads."""

_OTHER_LAYERS: Final = {
    "index_topk": "a sparse attention index",
    "compress_ratios": "a compressed KV cache",
    "num_kv_shared_layers": "layers that share a KV cache",
    "global_head_dim": "layers with heads of two sizes",
    "block_configs": "layers of different shapes",
}
"""Mapping from a field of config.json to the reason why the formulas do not cover any model with
this field."""

_LINEAR: Final = 0
"""Entry of attn_type_list for a layer of linear attention. Models whose layers all have attention
have this list too."""

_LENGTH_IF_UNKNOWN: Final = 2048
"""Length in tokens that the engine assumes if config.json has none, as in Mamba models. Source:
vLLM 0.32, config/model.py."""

_ALTERNATING: Final = {"gemma2": 2, "gpt_oss": 2}
"""Mapping from a model type to the number of layers from one layer that keeps the whole context to
the next such layer. It is used if config.json has no layer_types."""

_LENGTHS: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""Fields of config.json for the longest request, in tokens."""
_SCALED_LENGTHS: Final = frozenset({"linear", "dynamic", "yarn"})
"""Kinds of RoPE scaling that multiply the context length in config.json."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model. They are for the whole model, and do not depend on the number of GPUs."""

    windows: tuple[int | None, ...]
    """Number of tokens that each attention layer attends to; None for the whole context."""
    attention_heads: int
    """Number of attention heads; 0 in a model without attention, as in the next two fields."""
    kv_heads: int
    head_size: int
    """Number of elements of one key, and of one value."""
    latent_size: int | None
    """Number of elements that a layer of multi-head latent attention stores for a token in place of
    keys and values; None in other models. Every GPU stores all of these elements."""
    hidden_size: int
    intermediate_size: int
    vocabulary: int
    longest: int
    """Longest request that the model supports, in tokens."""
    element_bytes: int
    """Bytes of an element in the 16-bit format in which the engine computes by default."""
    is_quantized: bool
    """Whether the stored weights are quantized. The engine then keeps them in the stored format."""
    state: StateShape | None = None
    """State of the layers that store one, in place of keys and values; None if no layer does."""

    @property
    def layers(self) -> str:
        """The numbers of layers with attention and with a state."""
        if self.state is None:
            return f"{len(self.windows)} layers"
        if not self.windows:
            return f"{self.state.layers} layers"
        return f"{len(self.windows)} layers with attention and {self.state.layers} with a state"

    @property
    def shared_parts(self) -> tuple[str, ...]:
        """The parts of a layer that the GPUs share, each with its number."""
        parts: tuple[str, ...] = ()
        if self.windows:
            parts = f"{self.attention_heads} attention heads", f"{self.kv_heads} KV heads"
        if (state := self.state) is None:
            return parts
        groups = f" in {state.groups} groups" if state.groups > 1 else ""
        return (*parts, f"{state.heads} {state.part}{groups}")


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape of the model with this config.json.

    Raises UnknownShape when a field is missing, or when the formulas do not cover the model.
    """
    text = config.get("text_config") or config.get("llm_config") or config
    if not isinstance(text, Mapping):
        raise UnknownShape("config.json has a text_config that is not an object")
    kinds = layer_kinds(text)
    state = read_states(text, kinds)
    for name, what in (
        _OTHER_LAYERS if state is not None else _OTHER_STATE | _OTHER_LAYERS
    ).items():
        if text.get(name):
            raise UnknownShape(f"the model has {what} ({name}), whose memory is not known here")
    if _LINEAR in (text.get("attn_type_list") or ()):
        raise UnknownShape(
            "the model has linear attention (attn_type_list), whose memory is not known here"
        )
    is_quantized = _is_quantized(config, text)
    if state is not None and kinds is None:
        return _shape_without_attention(text, state, is_quantized=is_quantized)
    heads = number(text, "num_attention_heads", "n_head")
    hidden = number(text, "hidden_size", "n_embd")
    layers = number(text, "num_hidden_layers", "n_layer")
    latent = text.get("kv_lora_rank")
    return ModelShape(
        windows=_windows(text, layers, kinds, has_states=state is not None),
        attention_heads=heads,
        kv_heads=_kv_heads(text, heads),
        head_size=int(text.get("head_dim") or hidden // heads),
        latent_size=None if not latent else int(latent) + number(text, "qk_rope_head_dim"),
        hidden_size=hidden,
        intermediate_size=int(text.get("intermediate_size") or 4 * hidden),
        vocabulary=number(text, "vocab_size"),
        longest=_longest(text),
        element_bytes=2,
        is_quantized=is_quantized,
        state=state,
    )


def _is_quantized(config: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    return bool(config.get("quantization_config") or text.get("quantization_config"))


def _shape_without_attention(
    text: Mapping[str, Any], state: StateShape, *, is_quantized: bool
) -> ModelShape:
    return ModelShape(
        windows=(),
        attention_heads=0,
        kv_heads=0,
        head_size=0,
        latent_size=None,
        hidden_size=number(text, "hidden_size"),
        intermediate_size=state.channels,
        vocabulary=number(text, "vocab_size"),
        longest=first_positive(text, *_LENGTHS) or _LENGTH_IF_UNKNOWN,
        element_bytes=2,
        is_quantized=is_quantized,
        state=state,
    )


def _kv_heads(text: Mapping[str, Any], heads: int) -> int:
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1
    return first_positive(text, "num_key_value_heads", "num_kv_heads", "n_head_kv") or heads


def _windows(
    text: Mapping[str, Any], layers: int, kinds: Sequence[str] | None, *, has_states: bool
) -> tuple[int | None, ...]:
    window = text.get("sliding_window")
    if text.get("use_sliding_window") is False or not isinstance(window, int) or window < 1:
        window = None
    if kinds is not None:
        if not has_states:
            return tuple(_window_of(kind, window) for kind in kinds[:layers])
        return tuple(_window_of(kind, window) for kind in kinds if kind not in STATE_KINDS)
    period = text.get("sliding_window_pattern") or _ALTERNATING.get(str(text.get("model_type")))
    if window is not None and isinstance(period, int) and period > 0:
        return tuple(None if (layer + 1) % period == 0 else window for layer in range(layers))
    return (window,) * layers


def _window_of(kind: str, window: int | None) -> int | None:
    if kind in _WHOLE_CONTEXT:
        return None
    if kind == _WINDOWED:
        return window
    raise UnknownShape(f"the model has layers of the kind {kind}, whose memory is not known here")


def _longest(text: Mapping[str, Any]) -> int:
    longest = number(text, *_LENGTHS)
    scaling = text.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in _SCALED_LENGTHS:
        original = scaling.get("original_max_position_embeddings", longest)
        longest = int(original * float(scaling.get("factor", 1.0)))
    return longest

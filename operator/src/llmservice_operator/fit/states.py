"""Reads from a model's config.json which layers store a state of fixed size for each request.

Such layers are those of Mamba, of linear attention (a gated delta net) and of short convolutions.
They replace attention layers, or are beside them. All of them store the last inputs of a
convolution and a state of each channel, either of which may be empty, so one shape describes all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llmservice_operator.fit.config_fields import first_positive, number

STATE_KINDS: Final = frozenset({"mamba", "linear_attention", "conv"})
"""Names of the kinds of layers with a state, in `layer_types`."""
_NO_CACHE: Final = frozenset({"mlp", "moe"})
"""Names of the kinds of layers that store nothing for a request."""
_PATTERN: Final = {"M": "mamba", "*": "full_attention", "-": "mlp", "E": "moe"}
"""Character of hybrid_override_pattern -> kind of the layer."""

FORMAT_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Name of a number format -> bytes of one number."""

_QWEN: Final = frozenset(
    {"qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"}
)


@dataclass(frozen=True, slots=True)
class StateShape:
    """Sizes of the state that each of these layers stores for a request.

    The size of the state does not depend on the length of the request.
    """

    layers: int
    """Number of layers with a state."""
    channels: int
    """Number of channels of a layer (the inner size)."""
    size: int
    """Number of state elements of each channel; 0 in a short convolution."""
    kernel: int
    """Number of tokens that the convolution covers."""
    heads: int
    """Number of heads that the GPUs can share. In the first version of Mamba and in a short
    convolution, each channel is a head."""
    groups: int
    """Number of groups of heads that share two projections; 0 where each channel is a head."""
    part: str
    """Name of the heads, for messages."""
    is_mamba_2: bool = False
    """Whether the layers are of the second version of Mamba."""
    element_bytes: int | None = None
    """Bytes of an element of the channels' state, if the model chooses the format; None for the
    format of all states."""


def layer_kinds(text: Mapping[str, Any]) -> Sequence[str] | None:
    """Return the kind of each layer that stores something; None if config.json has no list of them.

    A layer with both attention and a state is two layers.
    """
    layers = first_positive(text, "num_hidden_layers") or 0
    kinds = text.get("layer_types") or text.get("layers_block_type")
    if pattern := text.get("hybrid_override_pattern"):
        kinds = [_PATTERN.get(each, each) for each in pattern]
    match text.get("model_type"):
        case "falcon_h1":
            kinds = ["full_attention", "mamba"] * layers
        case "jamba":
            period, offset = number(text, "attn_layer_period"), int(text["attn_layer_offset"])
            of_attention = (layer % period == offset for layer in range(layers))
            kinds = ["full_attention" if each else "mamba" for each in of_attention]
        case "lfm2" if kinds is None:
            places = text.get("full_attn_idxs")
            kinds = [
                "full_attention" if places is None or layer in places else "conv"
                for layer in range(layers)
            ]
        case model if model in _QWEN and kinds is None:
            interval = first_positive(text, "full_attention_interval") or 4
            kinds = ["linear_attention"] * layers
            kinds[interval - 1 :: interval] = ["full_attention"] * (layers // interval)
    return None if kinds is None else [each for each in kinds if each not in _NO_CACHE]


def read_states(text: Mapping[str, Any], kinds: Sequence[str] | None) -> StateShape | None:
    """Return the shape of the states of a model whose layers have these kinds.

    Returns None for a model without such layers, or of an unknown type. Raises UnknownShape when a
    field is missing.
    """
    read = _READERS.get(text.get("model_type", ""))
    if read is None:
        return None
    layers = number(text, "num_hidden_layers")
    if kinds is not None:
        layers = sum(each in STATE_KINDS for each in kinds)
    return read(text, layers) if layers else None


def _mamba(text: Mapping[str, Any], layers: int) -> StateShape:
    expanded = number(text, "expand", "mamba_expand") * number(text, "hidden_size")
    channels = expanded
    if text["model_type"] != "jamba":
        channels = first_positive(text, "intermediate_size") or expanded
    return StateShape(
        layers,
        channels,
        size=number(text, "state_size", "mamba_d_state"),
        kernel=number(text, "conv_kernel", "mamba_d_conv"),
        heads=channels,
        groups=0,
        part="state-space channels",
    )


def _mamba_2(text: Mapping[str, Any], layers: int) -> StateShape:
    heads = number(text, "num_heads", "mamba_n_heads", "mamba_num_heads")
    if text["model_type"] == "nemotron_h":
        channels = heads * number(text, "mamba_head_dim")
        chosen = str(text.get("mamba_ssm_cache_dtype") or "float32")
    else:
        channels = first_positive(text, "mamba_d_ssm") or (
            number(text, "expand", "mamba_expand") * number(text, "hidden_size")
        )
        chosen = ""
    return StateShape(
        layers,
        channels,
        size=number(text, "state_size", "mamba_d_state", "ssm_state_size"),
        kernel=number(text, "conv_kernel", "mamba_d_conv"),
        heads=heads,
        groups=number(text, "n_groups", "mamba_n_groups"),
        part="state-space heads",
        is_mamba_2=True,
        element_bytes=FORMAT_BYTES.get(chosen),
    )


def _gated_delta_net(text: Mapping[str, Any], layers: int) -> StateShape:
    heads = number(text, "linear_num_value_heads")
    return StateShape(
        layers,
        channels=heads * number(text, "linear_value_head_dim"),
        size=number(text, "linear_key_head_dim"),
        kernel=number(text, "linear_conv_kernel_dim"),
        heads=heads,
        groups=number(text, "linear_num_key_heads"),
        part="heads of linear attention",
        element_bytes=FORMAT_BYTES.get(str(text.get("mamba_ssm_dtype"))),
    )


def _short_convolution(text: Mapping[str, Any], layers: int) -> StateShape:
    channels = first_positive(text, "conv_dim") or number(text, "hidden_size")
    return StateShape(
        layers,
        channels,
        size=0,
        kernel=number(text, "conv_L_cache"),
        heads=channels,
        groups=0,
        part="channels of convolutions",
    )


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any], int], StateShape]]] = {
    "mamba": _mamba,
    "falcon_mamba": _mamba,
    "jamba": _mamba,
    "mamba2": _mamba_2,
    "falcon_h1": _mamba_2,
    "granitemoehybrid": _mamba_2,
    "nemotron_h": _mamba_2,
    **dict.fromkeys(_QWEN, _gated_delta_net),
    "lfm2": _short_convolution,
    "lfm2_moe": _short_convolution,
}
"""Model type -> function that reads the shape of the states."""

"""Write an EAGLE head and Medusa heads with random weights, as drafts for the tiny Llama.

The Python of the engine's environment runs `make_tiny_heads.py TINY_LLAMA_FOLDER FOLDER`. The
guesses of these heads are no better than chance. Tests use them to show that the engine uses its
heads and accepts no wrong token.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SEED = 20240608
WEIGHT_SPREAD = 0.3
MEDUSA_HEADS = 3


def eagle(llama: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration and weights of an EAGLE head, which is one more layer like those of
    the model.
    """
    hidden, inner = llama["hidden_size"], llama["intermediate_size"]
    queries = llama["num_attention_heads"] * llama["head_dim"]
    keys = llama["num_key_value_heads"] * llama["head_dim"]
    shapes = {
        "fc": (hidden, 2 * hidden),
        "layers.0.self_attn.q_proj": (queries, hidden),
        "layers.0.self_attn.k_proj": (keys, hidden),
        "layers.0.self_attn.v_proj": (keys, hidden),
        "layers.0.self_attn.o_proj": (hidden, queries),
        "layers.0.mlp.gate_proj": (inner, hidden),
        "layers.0.mlp.up_proj": (inner, hidden),
        "layers.0.mlp.down_proj": (hidden, inner),
    }
    weights = {f"{name}.weight": random_weights(*shape) for name, shape in shapes.items()}
    weights["layers.0.post_attention_layernorm.weight"] = torch.ones(hidden)
    return {"model_type": "eagle", "model": {**llama, "num_hidden_layers": 1}}, weights


def medusa(llama: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration and weights of Medusa heads, each of which guesses one token further
    ahead.
    """
    hidden, vocabulary = llama["hidden_size"], llama["vocab_size"]
    weights = {}
    for head in range(MEDUSA_HEADS):
        weights[f"blocks.{head}.layers.0.weight"] = random_weights(hidden, hidden)
        weights[f"lm_heads.{head}.weight"] = random_weights(vocabulary, hidden)
    config = {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "hidden_size": hidden,
        "vocab_size": vocabulary,
        "num_heads": MEDUSA_HEADS,
        "num_hidden_layers": 1,
    }
    return config, weights


def random_weights(*shape: int) -> Any:
    return torch.randn(shape) * WEIGHT_SPREAD


def main() -> None:
    llama, target = map(Path, sys.argv[1:])
    config = json.loads((llama / "config.json").read_text())
    torch.manual_seed(SEED)
    for name, make in (("eagle", eagle), ("medusa", medusa)):
        made, weights = make(config)
        (target / name).mkdir(parents=True)
        (target / name / "config.json").write_text(json.dumps(made, indent=2))
        in_half = {key: each.to(torch.bfloat16) for key, each in weights.items()}
        save_file(in_half, target / name / "model.safetensors")


main()

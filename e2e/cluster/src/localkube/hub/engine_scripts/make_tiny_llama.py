"""Write a small Llama with random weights, which loads fast. The weights are always the same.

The Python of the engine's environment runs `make_tiny_llama.py TOKENIZER_FOLDER FOLDER`.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

SEED = 20240607
CONTEXT_TOKENS = 2048
SETTINGS = "tokenizer_config.json"
WEIGHT_SPREAD = 0.3
"""Standard deviation of the weights. It is much larger than at the start of training, so that the
best token stands out and greedy answers do not depend on rounding errors."""


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    tokenizer = AutoTokenizer.from_pretrained(source)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            # Four and two heads can be split over two devices. 32 is the smallest head size that
            # the engine's attention kernels support.
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            initializer_range=WEIGHT_SPREAD,
            **special,
        )
    )
    model.generation_config = GenerationConfig(**special)
    model.to(torch.bfloat16).save_pretrained(target)
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copyfile(source / name, target / name)
    settings = json.loads((source / SETTINGS).read_text())
    settings["model_max_length"] = CONTEXT_TOKENS
    (target / SETTINGS).write_text(json.dumps(settings, indent=2))


main()

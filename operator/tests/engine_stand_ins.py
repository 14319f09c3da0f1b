"""Models without weights that replace the models of specs, so that an engine can configure itself.

Each is based on the tiny Llama, made wide and deep enough for the parallelism of any spec.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

CHAT_TEMPLATE_VARIABLE: Final = "$(LLMSERVICE_CHAT_TEMPLATE)"
HEAD_DIM: Final = 32

_MIXTURE_OF_EXPERTS: Final = {
    "model_type": "glm4_moe",
    "architectures": ["Glm4MoeForCausalLM"],
    "n_routed_experts": 64,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
}
"""A model family for which vLLM supports experts and multi-token prediction (MTP)."""

_QUANTIZED: Final = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
}


class StandIns:
    """Folders with model configurations, created on demand."""

    def __init__(self, tiny: Path, folder: Path) -> None:
        self._tiny = tiny
        self._folder = folder
        self._config: dict[str, Any] = json.loads((tiny / "config.json").read_text())

    def arguments(self, args: list[str]) -> list[str]:
        """Return the arguments as the kubelet passes them, with a stand-in for each model."""
        given = dict(arg.partition("=")[::2] for arg in args)
        speculation = json.loads(given.get("--speculative-config", "{}"))
        width = int(given.get("--tensor-parallel-size", "1"))
        quantization = given.get("--quantization", "")
        has_experts = "--enable-expert-parallel" in given or speculation.get("method") == "mtp"
        given["--model"] = str(self._model(width, quantization, has_experts=has_experts))
        given.pop("--revision", None)
        if "model" in speculation:
            speculation["model"] = str(self._head(speculation["method"], width))
            speculation.pop("revision", None)
            given["--speculative-config"] = json.dumps(speculation)
        if given.get("--chat-template") == CHAT_TEMPLATE_VARIABLE:
            given["--chat-template"] = "{{ messages }}"
        return [
            f"{flag}={value.replace('$$', '$')}" if value else flag for flag, value in given.items()
        ]

    def _model(self, width: int, quantization: str, *, has_experts: bool) -> Path:
        family = _MIXTURE_OF_EXPERTS if has_experts else {}
        method = quantization.partition("_")[0]
        weights = {"quantization_config": _QUANTIZED[method]} if method in _QUANTIZED else {}
        name = f"model-{width}-{method}-{has_experts}"
        return self._written(name, {**self._wide(width), **family, **weights})

    def _head(self, method: str, width: int) -> Path:
        wide = self._wide(width)
        config = {
            "draft_model": wide,
            "eagle": {"model_type": "eagle", "model": {**wide, "num_hidden_layers": 1}},
            "eagle3": {
                **wide,
                "architectures": ["LlamaForCausalLMEagle3"],
                "num_hidden_layers": 1,
                "draft_vocab_size": 32_000,
            },
            "dflash": {**wide, "architectures": ["DFlashDraftModel"], "num_hidden_layers": 1},
            "dspark": {
                **wide,
                "architectures": ["Qwen3DSparkModel"],
                "model_type": "qwen3",
                "num_hidden_layers": 1,
            },
            "medusa": {
                "model_type": "medusa",
                "architectures": ["MedusaModel"],
                "hidden_size": wide["hidden_size"],
                "vocab_size": wide["vocab_size"],
                "num_heads": 16,
                "num_hidden_layers": 1,
            },
        }[method]
        return self._written(f"{method}-{width}", config)

    def _wide(self, width: int) -> dict[str, Any]:
        return self._config | {
            "max_position_embeddings": 100_000_000,
            "num_attention_heads": width,
            "num_key_value_heads": width,
            "head_dim": HEAD_DIM,
            "hidden_size": HEAD_DIM * width,
            "num_hidden_layers": 64,
        }

    def _written(self, name: str, config: Mapping[str, Any]) -> Path:
        folder = self._folder / name
        if not folder.exists():
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config))
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(self._tiny / file, folder / file)
        return folder

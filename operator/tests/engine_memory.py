"""Reports how much memory vLLM gives a model, without allocating it.

It runs inside the engine environment, never in the workspace's. The first argument names a JSON
file with a list. Each entry contains a folder with a config.json, and engine arguments. The program
builds every model on torch's meta device. The second argument names the JSON file that it writes: a
list with an entry for each model:

weights     bytes of the parameters
stored      number of parameters that transformers would write, by the safetensors name of their
            data type; null for a quantized model
sequence    bytes of the KV cache that vLLM reserves for one sequence of the maximum length
length      that length, in tokens
in_flight   tokens that vLLM may have scheduled but not yet settled
block       tokens in a block of the KV cache
utilization default share of a GPU's memory that the engine uses
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from vllm.config import get_layers_from_vllm_config, set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.distributed.parallel_state import destroy_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.platforms import current_platform
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.core.kv_cache_utils import _max_memory_usage_bytes_from_groups, get_kv_cache_groups
from vllm.v1.kv_cache_interface import KVCacheSpec, MambaSpec

from llmservice_server.compat import model_inspections

GPU_BLOCK_TOKENS = 16
"""Block size on GPUs, in tokens. The block size on CPUs differs."""


def stored_parameters(folder: str) -> dict[str, int] | None:
    """Return the number of parameters in a checkpoint of this model, by data type.

    A tied tensor is counted once. The result is None for a quantized model.
    """
    config = AutoConfig.from_pretrained(folder)
    if getattr(config, "quantization_config", None) is not None:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    names = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    found: dict[str, int] = {}
    for parameter in model.parameters():
        kind = names[parameter.dtype]
        found[kind] = found.get(kind, 0) + parameter.numel()
    return found


def of_gpu(spec: KVCacheSpec, block: int) -> KVCacheSpec:
    """Return the spec of a layer with the block size that it has on GPUs."""
    # On CPUs, sliding-window layers have larger blocks. A state is a block of its own.
    return spec if isinstance(spec, MambaSpec) else spec.copy_with_new_block_size(block)


def measure(folder: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return vLLM's figures for the model in a folder."""
    config = EngineArgs(
        model=folder,
        skip_tokenizer_init=True,
        load_format="dummy",
        enforce_eager=True,
        block_size=GPU_BLOCK_TOKENS,
        **arguments,
    ).create_engine_config()
    # FlashAttention uses this layout on GPUs. An engine would set it when it starts.
    config.cache_config.kv_cache_layout = "LBNHC"
    # vLLM manages the KV cache of sliding-window layers separately on GPUs only.
    config.scheduler_config.disable_hybrid_kv_cache_manager = False
    default = torch.get_default_dtype()
    with set_current_vllm_config(config):
        destroy_model_parallel()
        ensure_model_parallel_initialized(1, 1)
        torch.set_default_dtype(config.model_config.dtype)
        try:
            with torch.device("meta"):
                model = initialize_model(config)
        finally:
            torch.set_default_dtype(default)
        if config.model_config.is_hybrid:
            current_platform.update_block_size_for_backend(config)
        layers = get_layers_from_vllm_config(config, AttentionLayerBase)
        specs = {
            name: of_gpu(spec, config.cache_config.block_size)
            for name, layer in layers.items()
            if (spec := layer.get_kv_cache_spec(config)) is not None
        }
        groups = get_kv_cache_groups(config, specs)
        return {
            "weights": sum(it.numel() * it.element_size() for it in model.parameters()),
            "stored": stored_parameters(folder),
            "sequence": _max_memory_usage_bytes_from_groups(config, groups),
            "length": config.model_config.max_model_len,
            "in_flight": config.max_in_flight_tokens,
            "block": config.cache_config.block_size,
            "utilization": EngineArgs.gpu_memory_utilization,
        }


def main() -> None:
    """Measure every model in the input file and write the figures to the output file."""
    # FlashAttention divides blocks into these on GPUs.
    CPUAttentionBackend.get_supported_kernel_block_sizes = staticmethod(
        lambda *_: [MultipleOf(GPU_BLOCK_TOKENS)]
    )
    # On CPUs with these instructions, vLLM replaces the format of the state of Mamba layers.
    torch.cpu._is_avx512_bf16_supported = lambda: False
    # If its cache of model classes were empty, vLLM would import itself again for each class.
    model_inspections()
    asked, found = map(Path, sys.argv[1:])
    rendezvous = Path(tempfile.mkdtemp()) / "rendezvous"
    init_distributed_environment(1, 0, f"file://{rendezvous}", 0, "gloo")
    questions = json.loads(asked.read_text())
    found.write_text(json.dumps([measure(folder, arguments) for folder, arguments in questions]))


if __name__ == "__main__":
    main()

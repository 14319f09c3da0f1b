"""Writes random LoRA adapters and lists of adapters, as files for the server under test."""

import json
import os
import random
import struct
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from server_support.engine import ModelServer

RANK = 8
Tensor = tuple[tuple[int, ...], bytes]
"""Shape and content of a tensor of 32-bit floats."""

ADAPTER_FLAGS = ("--enable-lora", f"--max-lora-rank={RANK}", "--max-loras=2")


def write_adapter(folder: Path, model: Path, seed: int, rank: int = RANK) -> Path:
    """Write an adapter for the attention of a model. Different seeds give different answers."""
    shape = json.loads((model / "config.json").read_text())
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    head = shape.get("head_dim") or hidden // heads
    outputs = {"q_proj": heads * head, "v_proj": shape["num_key_value_heads"] * head}
    chance = random.Random(seed)
    tensors = {}
    for layer in range(shape["num_hidden_layers"]):
        for module, output in outputs.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{prefix}.lora_A.weight"] = _random(chance, (rank, hidden), 1.0)
            tensors[f"{prefix}.lora_B.weight"] = _random(chance, (output, rank), 0.3)
    return write_files(folder, {"r": rank, "target_modules": list(outputs)}, tensors)


def write_files(
    folder: Path,
    configuration: Mapping[str, object],
    tensors: Mapping[str, Tensor],
) -> Path:
    """Write the two files of an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"peft_type": "LORA", "lora_alpha": RANK, "bias": "none", **configuration}
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    header, data = {}, b""
    for name, (shape, content) in tensors.items():
        place = [len(data), len(data) + len(content)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": place}
        data += content
    written = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(
        struct.pack("<Q", len(written)) + written + data
    )
    return folder


def zeros(*shape: int) -> Tensor:
    """Return a tensor of zeros."""
    return shape, bytes(4 * shape[0] * shape[1])


def entry(name: str, source: Path | str, revision: str | None = None) -> dict[str, Any]:
    """Return the entry of an adapter in the list."""
    return {
        "name": name,
        "source": str(source),
        **({} if revision is None else {"revision": revision}),
    }


def write_list(
    file: Path, adapters: Iterable[Mapping[str, Any]], served: Iterable[Mapping[str, Any]] | None
) -> None:
    """Replace the list in one step, as the kubelet does."""
    content = {"adapters": list(adapters)} | ({} if served is None else {"served": list(served)})
    new = file.with_suffix(".new")
    new.write_text(json.dumps(content))
    os.replace(new, file)


def answer(server: ModelServer, model: str, prompt: str = "The sea is", tokens: int = 8) -> str:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    reply = server.post("/v1/completions", {**body, "ignore_eos": True})
    assert reply.status == 200, reply.body
    found = reply.json()
    assert found["model"] == model
    return str(found["choices"][0]["text"])


def _random(chance: random.Random, shape: tuple[int, int], spread: float) -> Tensor:
    values = array("f", (chance.gauss(0, spread) for _ in range(shape[0] * shape[1])))
    return shape, values.tobytes()

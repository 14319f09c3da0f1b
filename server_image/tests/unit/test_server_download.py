import json
from pathlib import Path

import pytest

from llmservice_server.download import (
    HubModel,
    configuration_files,
    hub_model,
    weight_files,
)

INDEX = "model.safetensors.index.json"


def chosen(*names: str, load_format: str = "auto", shards: tuple[str, ...] = ()) -> list[str]:
    index = json.dumps({"weight_map": {f"layer{i}": shard for i, shard in enumerate(shards)}})
    return weight_files(names, load_format, lambda: index)


def test_takes_safetensors_and_leaves_the_other_copies() -> None:
    names = ("config.json", "model.safetensors", "pytorch_model.bin", "consolidated.00.pt")
    assert chosen(*names) == ["model.safetensors"]


def test_takes_the_older_format_where_there_is_nothing_else() -> None:
    assert chosen("config.json", "pytorch_model.bin") == ["pytorch_model.bin"]


def test_follows_the_index_past_extra_files() -> None:
    shards = ("model-1.safetensors", "model-2.safetensors")
    assert chosen(*shards, "extra.safetensors", INDEX, shards=shards) == list(shards)


def test_takes_the_consolidated_file_where_the_maker_ships_one() -> None:
    names = ("consolidated.safetensors", "model-1.safetensors", INDEX)
    assert chosen(*names, shards=("model-1.safetensors",)) == ["consolidated.safetensors"]


def test_leaves_the_original_folder() -> None:
    assert chosen("a.safetensors", "original/b.safetensors") == ["a.safetensors"]


def test_finds_no_weights_where_there_are_none() -> None:
    assert chosen("config.json", "README.md") == []


def test_a_hub_model_is_named_by_its_repository(tmp_path: Path) -> None:
    assert hub_model("org/name", "main", "auto", None, True) == HubModel("org/name", "main", "auto")
    assert hub_model("org/name", None, "auto", None, "secret") == HubModel(
        "org/name", token="secret"
    )


@pytest.mark.parametrize("load_format", ["dummy", "runai_streamer", "tensorizer"])
def test_leaves_other_ways_of_loading_to_the_engine(load_format: str) -> None:
    assert hub_model("org/name", None, load_format, None, None) is None


def test_fetches_nothing_for_a_folder_or_an_object_store(tmp_path: Path) -> None:
    assert hub_model(str(tmp_path), None, "auto", None, None) is None
    assert hub_model("s3://bucket/model", None, "auto", None, None) is None


LOADED = [
    "1_Pooling/config.json",
    "added_tokens.json",
    "additional_chat_templates/tool_use.jinja",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "modeling_own.py",
    "modules.json",
    "params.json",
    "preprocessor_config.json",
    "qwen.tiktoken",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "vocab.json",
    "vocab.txt",
]


def test_takes_every_file_beside_the_weights_that_the_engine_loads() -> None:
    assert configuration_files(reversed(LOADED)) == LOADED


@pytest.mark.parametrize(
    "name",
    [
        "coreml/model.mlmodel",
        "flax_model.msgpack",
        "model-Q4_K_M.gguf",
        "model.bf16.ckpt",
        "model.nemo",
        "model.safetensors",
        "model.tflite",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "onnx/model_q4.onnx.data",
        "openvino/openvino_model.bin",
        "openvino/openvino_model.xml",
        "pytorch_model.bin",
        "rust_model.ot",
        "samples.tar.gz",
        "tf_model.h5",
        "weights.npz",
        "README.md",
        ".gitattributes",
        "teaser.png",
    ],
)
def test_leaves_what_is_for_other_programs_or_for_people(name: str) -> None:
    assert configuration_files(["config.json", name]) == ["config.json"]

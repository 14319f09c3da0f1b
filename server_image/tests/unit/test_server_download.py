import json
from pathlib import Path

import pytest

from llmservice_server.download import HubModel, hub_model, weight_files

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

"""Tests the hub's own client with a hub that responds and refuses as the public hub does."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmservice_operator.model_files import ModelFilesError, read_folder, read_repository
from localkube.hub.repository import Visibility
from localkube.hub.settings import HubSettings, RepositorySettings
from localkube_support.hub import running_hub, write_repository

PUBLIC, SHARDED, PRIVATE, GATED = "org/public", "org/sharded", "org/private", "org/gated"
BARE, PICKLED, BROKEN = "org/bare", "org/pickled", "org/broken"
READER = "hf_reader"
CONFIG = {"model_type": "llama", "num_hidden_layers": 2}


def safetensors(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """Return a file with these tensors. All their numbers are zero, because no test reads them."""
    header: dict[str, object] = {}
    end = 0
    for name, (kind, shape) in tensors.items():
        size = {"F32": 4, "BF16": 2}[kind]
        for length in shape:
            size *= length
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


WHOLE = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": safetensors({"a": ("BF16", [3, 4]), "b": ("F32", [5])}),
}
SHARDS = {
    "config.json": WHOLE["config.json"],
    "model.safetensors.index.json": json.dumps(
        {
            "metadata": {"total_size": 60},
            "weight_map": {
                "a": "model-00001-of-00002.safetensors",
                "b": "model-00002-of-00002.safetensors",
            },
        }
    ).encode(),
    "model-00001-of-00002.safetensors": safetensors({"a": ("BF16", [10])}),
    "model-00002-of-00002.safetensors": safetensors({"b": ("BF16", [20])}),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("repositories")
    contents = {
        "whole": WHOLE,
        "shards": SHARDS,
        "bare": {"README.md": b"nothing"},
        "pickled": {"config.json": WHOLE["config.json"], "pytorch_model.bin": b"0"},
        "broken": {**WHOLE, "config.json": b"{"},
    }
    branches = {
        name: {"main": write_repository(folder / name, files)} for name, files in contents.items()
    }
    settings = HubSettings(
        port=0,
        repositories={
            PUBLIC: RepositorySettings(branches=branches["whole"]),
            SHARDED: RepositorySettings(branches=branches["shards"]),
            PRIVATE: RepositorySettings(branches=branches["whole"], visibility=Visibility.PRIVATE),
            GATED: RepositorySettings(branches=branches["whole"], visibility=Visibility.GATED),
            BARE: RepositorySettings(branches=branches["bare"]),
            PICKLED: RepositorySettings(branches=branches["pickled"]),
            BROKEN: RepositorySettings(branches=branches["broken"]),
        },
        tokens={READER: frozenset({PRIVATE, GATED})},
    )
    with running_hub(settings, tmp_path_factory.mktemp("hub")) as address:
        yield address


def test_the_parameters_are_counted_by_their_format(hub: str) -> None:
    config, checkpoint = read_repository(PUBLIC, None, hub, None)
    assert config == CONFIG
    assert checkpoint.parameters == {"BF16": 12, "F32": 5}
    assert checkpoint.stored_bytes == 12 * 2 + 5 * 4


def test_the_parameters_of_all_parts_are_added(hub: str) -> None:
    _, checkpoint = read_repository(SHARDED, "main", hub, None)
    assert checkpoint.parameters == {"BF16": 30}


@pytest.mark.parametrize("repository", [PRIVATE, GATED])
def test_a_token_opens_a_private_and_a_gated_model(hub: str, repository: str) -> None:
    _, checkpoint = read_repository(repository, None, hub, READER)
    assert checkpoint.total == 17


@pytest.mark.parametrize(
    ("repository", "revision", "sentence"),
    [
        (
            "org/absent",
            None,
            "the hub has no repository org/absent: correct the name, or set HF_TOKEN if it is "
            "private",
        ),
        (
            PRIVATE,
            None,
            "the hub has no repository org/private: correct the name, or set HF_TOKEN if it is "
            "private",
        ),
        (
            GATED,
            None,
            "org/gated is gated: accept its terms on the hub, and set HF_TOKEN to a token of that "
            "account",
        ),
        (PUBLIC, "v2", "org/public has no revision v2"),
        (BARE, None, "org/bare has no config.json"),
        (BARE, "main", "org/bare has no config.json at revision main"),
    ],
    ids=["absent", "private", "gated", "revision", "no config", "no config at revision"],
)
def test_a_refusal_of_the_hub_is_reported_with_the_remedy(
    hub: str, repository: str, revision: str | None, sentence: str
) -> None:
    with pytest.raises(ModelFilesError) as refused:
        read_repository(repository, revision, hub, None)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("repository", "beginning"),
    [(PICKLED, "org/pickled holds no model in the safetensors format: "), (BROKEN, "")],
)
def test_files_of_another_form_are_refused(hub: str, repository: str, beginning: str) -> None:
    with pytest.raises(ModelFilesError) as refused:
        read_repository(repository, None, hub, None)
    assert str(refused.value).startswith(beginning)
    assert beginning or "config.json is not valid JSON" in str(refused.value)


def test_a_hub_that_cannot_be_reached_is_named_at_once() -> None:
    with pytest.raises(ModelFilesError) as refused:
        read_repository(PUBLIC, None, "http://127.0.0.1:9", None)
    assert str(refused.value) == (
        "the hub http://127.0.0.1:9 cannot be read (ConnectError): try again, set HF_ENDPOINT to "
        "a hub that this machine reaches, or pass a folder with --model-dir"
    )


def test_a_folder_is_read_as_the_hub_is(tmp_path: Path) -> None:
    write_repository(tmp_path, SHARDS)
    config, checkpoint = read_folder(tmp_path)
    assert (config, checkpoint.parameters) == (CONFIG, {"BF16": 30})


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match="holds no model in the safetensors format"):
        read_folder(tmp_path)
    tmp_path.joinpath("config.json").write_text("[]")
    with pytest.raises(ModelFilesError, match="holds no object"):
        read_folder(tmp_path)

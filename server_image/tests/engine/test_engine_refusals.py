"""Tests a tensor parallel size that does not fit, full shared memory and an overloaded hub."""

import json
import shutil
from pathlib import Path

import pytest

from localkube.hub.settings import HubSettings, RepositorySettings
from localkube_support.hub import running_hub
from server_support.downloading import REPOSITORY, refusing
from server_support.engine import flags_for, running_server
from server_support.preloaded import Preloaded


@pytest.mark.causes("TensorSizeDoesNotFit")
@pytest.mark.parametrize(
    ("heads", "kv_heads", "found"),
    [(4, 2, "attention heads (4) must be divisible"), (12, 4, "The model has 4 KV heads")],
)
def test_a_tensor_size_that_does_not_fit_is_refused_before_the_weights_are_read(
    preloaded: Preloaded, tiny_model: Path, tmp_path: Path, heads: int, kv_heads: int, found: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("*.safetensors"))
    changed = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": 8 * heads,
    }
    configuration = json.loads((model / "config.json").read_text()) | changed
    (model / "config.json").write_text(json.dumps(configuration))
    flags = (*flags_for(model), "--tensor-parallel-size=3")
    with running_server(preloaded, tmp_path / "server", *flags) as server:
        assert server.process.wait(240) == 1, server.log.read_text()
        message = server.termination_message()
        assert message["reason"] == "TensorSizeDoesNotFit", message
        assert found in message["message"]


@pytest.mark.causes("SharedMemoryFull")
def test_shared_memory_that_is_full_is_named(
    engine_python: Path, tiny_model: Path, tmp_path: Path
) -> None:
    starter = tmp_path / "with-little-shared-memory"
    starter.write_text('#!/bin/sh\nmount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"\n')
    starter.chmod(0o755)
    flags = (*flags_for(tiny_model), "--tensor-parallel-size=2")
    own_mounts = f"unshare --map-root-user --mount {starter}"
    with running_server(engine_python, tmp_path / "server", *flags, starter=own_mounts) as server:
        assert server.process.wait(240) == 1, server.log.read_text()
        message = server.termination_message()
        assert message["reason"] == "SharedMemoryFull", message
        assert "--shm-size" not in message["message"]


def test_a_model_in_the_cache_is_served_while_the_hub_is_overloaded(
    preloaded: Preloaded, tiny_model: Path, tmp_path: Path
) -> None:
    cache = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "home")}
    flags = flags_for(REPOSITORY)
    repositories = {REPOSITORY: RepositorySettings(branches={"main": tiny_model})}
    with (
        running_hub(HubSettings(port=0, repositories=repositories), tmp_path) as address,
        running_server(preloaded, tmp_path / "1", *flags, HF_ENDPOINT=address, **cache) as first,
    ):
        first.wait_until_ready()
    with (
        refusing(429) as (address, hub),
        running_server(preloaded, tmp_path / "2", *flags, HF_ENDPOINT=address, **cache) as second,
    ):
        second.wait_until_ready()
        reply = second.post("/generate", {"prompt": "Hello", "max_tokens": 2, "ignore_eos": True})
        assert reply.json()["usage"]["completion_tokens"] == 2
    assert hub.asked == 1

"""Tests a model in an object store, with the environment variables that the operator sets."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import engine_env
from localkube.hub.packages import streamer_packages
from server_support.engine import SERVER_IMAGE, flags_for, running_server
from server_support.object_store import Credentials, ObjectStore, running_object_store
from server_support.preloaded import Preloaded

CREDENTIALS = Credentials("reader", "s3cret/+", "eu-central-1")
MODEL = "s3://weights/teams/llama"


@pytest.fixture
def store(tiny_model: Path, tmp_path: Path) -> Iterator[ObjectStore]:
    shutil.copytree(tiny_model, tmp_path / "store" / "weights" / "teams" / "llama")
    with running_object_store(tmp_path / "store", CREDENTIALS) as running:
        yield running


def test_weights_are_streamed_from_an_object_store_with_an_access_key(
    version: str, store: ObjectStore, tmp_path: Path
) -> None:
    with running_server(
        engine_env.engine_python(version),
        tmp_path / "server",
        *flags_for(MODEL),
        '--model-loader-extra-config={"concurrency":2,"memory_limit":1073741824}',
        "--load-format=runai_streamer",
        PYTHONPATH=os.pathsep.join((str(SERVER_IMAGE / "src"), str(streamer_packages()))),
        AWS_ENDPOINT_URL=store.endpoint,
        RUNAI_STREAMER_S3_ENDPOINT=store.endpoint,
        AWS_DEFAULT_REGION=CREDENTIALS.region,
        RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING="0",
        AWS_ACCESS_KEY_ID=CREDENTIALS.key_id,
        AWS_SECRET_ACCESS_KEY=CREDENTIALS.secret,
    ) as server:
        server.wait_until_ready()
        prompt = {"prompt": "Hello", "max_tokens": 2, "ignore_eos": True}
        assert server.post("/generate", prompt).json()["usage"]["completion_tokens"] == 2
        assert "weights/teams/llama/model.safetensors" in store.read
        assert store.refused == 0


def test_an_image_without_the_streamer_is_named_as_the_cause(
    of_version: Preloaded, tmp_path: Path
) -> None:
    with running_server(of_version, tmp_path, *flags_for(MODEL)) as server:
        assert server.process.wait(120) != 0
        message = server.termination_message()
    assert message["reason"] == "InvalidEngineArgument"
    assert "lacks the Python package runai-model-streamer[s3]" in message["message"]

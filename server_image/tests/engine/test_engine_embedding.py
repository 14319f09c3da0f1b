"""Tests a model that embeds instead of generating. Its files declare this, so no flag is needed."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from server_support.bystander import Question
from server_support.engine import (
    SERVED_NAME,
    ModelServer,
    documented_examples,
    flags_for,
    running_server,
)
from server_support.models import write_embedding_model
from server_support.preloaded import Preloaded
from server_support.volleys import hurtful_bodies_delay_nobody

HIDDEN_SIZE = 64


@pytest.fixture(scope="module")
def server(
    preloaded: Preloaded, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    """Server of the tiny Llama as a model that embeds."""
    folder = tmp_path_factory.mktemp("embedding")
    model = folder / "model"
    write_embedding_model(tiny_model, model)
    with running_server(preloaded, folder / "server", *flags_for(model)) as started:
        started.wait_until_ready()
        assert started.metric('llm_load_seconds{phase="smoke_testing"}') > 0
        yield started


def test_embeds(server: ModelServer) -> None:
    with OpenAI(base_url=f"http://127.0.0.1:{server.api_port}/v1", api_key="none") as client:
        answer = client.embeddings.create(
            model=SERVED_NAME, input=["the sea", "the sea", "a mountain"]
        )
    first, again, other = (each.embedding for each in answer.data)
    assert len(first) == HIDDEN_SIZE
    assert math.hypot(*first) == pytest.approx(1, abs=1e-3)
    assert again == pytest.approx(first, abs=1e-4)
    assert math.dist(first, other) > 0.1
    assert answer.usage.prompt_tokens > 3


def test_every_example_of_its_documentation_works(server: ModelServer) -> None:
    examples = documented_examples(server.get("/openapi.json").json()["paths"])
    assert {"/v1/embeddings", "/v2/embed", "/pooling"} <= set(examples)
    assert {"/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"} <= set(examples)
    for path, example in examples.items():
        assert server.post(path, example).status == 200, path


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_says_that_it_does_not_generate(server: ModelServer, path: str) -> None:
    reply = server.post(path, {"prompt": "Hello"})
    assert reply.status == 404
    assert reply.json()["error"] == {
        "message": f"this model does not serve {path}; GET /docs lists its routes",
        "type": "NotFoundError",
        "param": None,
        "code": 404,
    }


def test_embeds_as_many_texts_as_clients_send_at_once_and_refuses_more(server: ModelServer) -> None:
    # The number is above 1,024, the default length of the queue of an engine on a CPU.
    wanted = {"model": SERVED_NAME, "input": ["a title"] * 1025}
    answer = server.post("/v1/embeddings", wanted)
    assert answer.status == 200
    assert len(answer.json()["data"]) == 1025

    refused = server.post("/v1/embeddings", {**wanted, "input": ["a title"] * 20_000})
    assert refused.status == 400
    assert "at most 2048" in refused.json()["error"]["message"]
    arrays = b'{"model": "tiny", "input": [' + b"[1]," * 250_000 + b"[1]]}"
    assert server.post("/v1/embeddings", arrays).status == 400


def test_hurtful_bodies_delay_nobody(server: ModelServer, tmp_path: Path) -> None:
    question = json.dumps({"model": SERVED_NAME, "input": "the sea"}).encode()
    asked = Question("/v1/embeddings", question)
    hurtful_bodies_delay_nobody(server, asked, tmp_path, bodies=500)

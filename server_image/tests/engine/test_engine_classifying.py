"""Tests a model that classifies. Every route that vLLM has for it is open."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from server_support.bystander import Question
from server_support.engine import (
    SERVED_NAME,
    ModelServer,
    documented_examples,
    flags_for,
    running_server,
)
from server_support.preloaded import Preloaded
from server_support.volleys import hurtful_bodies_delay_nobody

LABELS = 3


@pytest.fixture(scope="module")
def server(
    preloaded: Preloaded, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    """Server of the tiny Llama as a classifier, with three of its tokens as labels."""
    overrides = {
        "architectures": ["LlamaForSequenceClassification"],
        "classifier_from_token": ["a", "b", "c"],
        "method": "no_post_processing",
    }
    folder = tmp_path_factory.mktemp("classifying")
    flags = (*flags_for(tiny_model), f"--hf-overrides={json.dumps(overrides)}")
    with running_server(preloaded, folder, *flags) as started:
        started.wait_until_ready()
        assert started.metric('llm_load_seconds{phase="smoke_testing"}') > 0
        yield started


def test_classifies(server: ModelServer) -> None:
    reply = server.post("/classify", {"model": SERVED_NAME, "input": ["good food", "bad food"]})
    assert reply.status == 200, reply.body
    probabilities = [each["probs"] for each in reply.json()["data"]]
    assert [len(each) for each in probabilities] == [LABELS, LABELS]
    assert all(sum(each) == pytest.approx(1) for each in probabilities)


def test_pools(server: ModelServer) -> None:
    reply = server.post("/pooling", {"model": SERVED_NAME, "input": "good food"})
    assert reply.status == 200, reply.body
    assert len(reply.json()["data"][0]["data"]) == LABELS


def test_every_example_of_its_documentation_works(server: ModelServer) -> None:
    examples = documented_examples(server.get("/openapi.json").json()["paths"])
    assert {"/classify", "/pooling", "/tokenize"} <= set(examples)
    assert not {"/v1/embeddings", "/v1/completions"} & set(examples)
    for path, example in examples.items():
        assert server.post(path, example).status == 200, path


def test_classifies_as_many_texts_as_clients_send_at_once_and_refuses_more(
    server: ModelServer,
) -> None:
    # The number is above 1,024, the default length of the queue of an engine on a CPU.
    wanted = {"model": SERVED_NAME, "input": ["a title"] * 1025}
    assert len(server.post("/classify", wanted).json()["data"]) == 1025
    for path in ("/classify", "/pooling"):
        refused = server.post(path, {**wanted, "input": ["a title"] * 20_000})
        assert refused.status == 400
        assert "at most 2048" in refused.json()["error"]["message"]


def test_hurtful_bodies_delay_nobody(server: ModelServer, tmp_path: Path) -> None:
    question = json.dumps({"model": SERVED_NAME, "input": "good food"}).encode()
    hurtful_bodies_delay_nobody(server, Question("/classify", question), tmp_path, bodies=250)

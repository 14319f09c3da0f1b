"""Tests that hurtful bodies delay neither probes nor other clients, and do not fill the memory.

The tests of embedding, classifying and hearing models send such bodies to those models. The
environment variable LLMSERVICE_TEST_REQUESTS is the number of bodies for all models together.
`make test-serving-long PART=bodies` sets it to 2,000.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from server_support.bystander import Question
from server_support.engine import SERVED_NAME, ModelServer, flags_for, running_server
from server_support.preloaded import Preloaded
from server_support.volleys import hurtful_bodies_delay_nobody

CONTEXT = 8192
"""Length of the context in tokens. It is so large that long texts reach the tokenizer."""

LONG_ANSWER = {
    "model": SERVED_NAME,
    "prompt": "Hello",
    "max_tokens": 64,
    "ignore_eos": True,
    "stream": True,
}


@pytest.fixture(scope="module")
def server(
    preloaded: Preloaded, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    """Server with the default limits of a body."""
    flags = (
        *flags_for(tiny_model),
        f"--max-model-len={CONTEXT}",
        f"--hf-overrides={json.dumps({'max_position_embeddings': CONTEXT})}",
    )
    with running_server(preloaded, tmp_path_factory.mktemp("bodies"), *flags) as started:
        started.wait_until_ready()
        yield started


def test_hurtful_bodies_delay_nobody(server: ModelServer, tmp_path: Path) -> None:
    question = Question("/v1/completions", json.dumps(LONG_ANSWER).encode())
    hurtful_bodies_delay_nobody(server, question, tmp_path, bodies=1000)

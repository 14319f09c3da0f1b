"""Tests the request that a server sends to itself before it is ready, with a real engine."""

import json
from pathlib import Path

import pytest

from server_support.engine import flags_for, running_server
from server_support.preloaded import Preloaded
from shared_support.weights import copy_with_nan_weights

EMBEDDING = ("--runner=pooling", "--convert=embed")
CLASSIFYING = (
    "--hf-overrides="
    + json.dumps(
        {
            "architectures": ["LlamaForSequenceClassification"],
            "classifier_from_token": ["a", "b", "c"],
            "method": "no_post_processing",
        }
    ),
)


@pytest.fixture(scope="module")
def broken_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a NaN for each weight."""
    model = tmp_path_factory.mktemp("broken") / "model"
    copy_with_nan_weights(tiny_model, model)
    return model


@pytest.mark.causes("SmokeTestFailed")
@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ((), "32 of 32 log-probabilities in the model's answer are not finite"),
        (EMBEDDING, "64 of 64 numbers in the model's answer are not finite"),
        (CLASSIFYING, "3 of 3 numbers in the model's answer are not finite"),
    ],
    ids=["generating", "embedding", "classifying"],
)
def test_a_model_that_computes_no_numbers_is_never_ready(
    preloaded: Preloaded, broken_model: Path, tmp_path: Path, flags: tuple[str, ...], found: str
) -> None:
    with running_server(preloaded, tmp_path, *flags_for(broken_model), *flags) as server:
        assert server.process.wait(240) == 1, server.log.read_text()
        message = server.termination_message()
        assert message["reason"] == "SmokeTestFailed", message
        assert found in message["message"]


def test_an_answer_that_the_pattern_does_not_match_is_quoted(
    preloaded: Preloaded, tiny_model: Path, tmp_path: Path
) -> None:
    settings = {"LLMSERVICE_SMOKE_TEST_EXPECT": "(?i)par.s$"}
    with running_server(preloaded, tmp_path, *flags_for(tiny_model), **settings) as server:
        assert server.process.wait(240) == 1, server.log.read_text()
        message = server.termination_message()
        assert message["reason"] == "SmokeTestFailed", message
        assert 'does not match the pattern "(?i)par.s$". It answered "' in message["message"]


def test_the_test_needs_no_key_and_counts_as_no_request(
    preloaded: Preloaded, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "one").write_text("a-key")
    settings = {
        "LLMSERVICE_API_KEYS_DIRECTORY": str(tmp_path / "keys"),
        "LLMSERVICE_SMOKE_TEST_PROMPT": "The sea is",
        "LLMSERVICE_SMOKE_TEST_EXPECT": ".",
    }
    with running_server(preloaded, tmp_path, *flags_for(tiny_model), **settings) as server:
        server.wait_until_ready()
        assert server.metric('llm_load_seconds{phase="smoke_testing"}') > 0
        assert server.metric("llm_requests_total") == 0
        assert server.metric("vllm:request_success_total") == 0
        assert server.metric("vllm:generation_tokens_total") == 0
        counters = server.counters()
        assert counters["arrivals"] == counters["finished"] == counters["generatedTokens"] == 0
        assert server.get("/v1/models").status == 401

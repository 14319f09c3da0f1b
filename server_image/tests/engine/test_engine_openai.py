"""Tests that OpenAI's client gets the same answers from the model server as from stock vLLM."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from localkube.hub.models import SMOLLM2, build_models
from openai_suite import MODEL, SUITE, Answered, Question, difference
from server_support.engine import ModelServer, running_server, running_stock
from server_support.preloaded import Preloaded

KEY = "a-key"
SURE = 1e-3
"""If the log-probabilities of two tokens differ by less than this, the two servers may rank the
tokens differently."""


@pytest.fixture(scope="module")
def flags() -> tuple[str, ...]:
    return (
        f"--model={build_models()[SMOLLM2]}",
        f"--served-model-name={MODEL}",
        "--dtype=float32",
        "--max-model-len=512",
        f"--kv-cache-memory-bytes={128 * 1024**2}",
        "--enable-auto-tool-choice",
        "--tool-call-parser=hermes",
    )


@pytest.fixture(scope="module")
def starting(
    engine_python: Path,
    preloaded: Preloaded,
    flags: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ModelServer, ModelServer]]:
    """The model server and stock vLLM, which start at the same time."""
    folder = tmp_path_factory.mktemp("openai")
    keys = folder / "keys"
    keys.mkdir()
    (keys / "one").write_text(KEY)
    setting = {"LLMSERVICE_API_KEYS_DIRECTORY": str(keys)}
    with (
        running_server(preloaded, folder / "ours", *flags, **setting) as ours,
        running_stock(engine_python, folder / "stock", *flags, f"--api-key={KEY}") as stock,
    ):
        yield ours, stock


@pytest.fixture(scope="module")
def retried(starting: tuple[ModelServer, ModelServer]) -> list[int]:
    """Statuses of all requests of one call, which the client made while the server was loading."""
    ours, _ = starting
    ours.eventually(ours.is_listening, seconds=120)
    statuses: list[int] = []
    with client_of(ours, retries=100) as client:
        client._client.event_hooks["response"].append(
            lambda response: statuses.append(response.status_code)
        )
        client.models.list()
    return statuses


@pytest.fixture(scope="module")
def theirs(
    starting: tuple[ModelServer, ModelServer], retried: list[int]
) -> dict[Question, Answered]:
    """Answer of stock vLLM to each question. It gets the questions in sequence."""
    _, stock = starting
    stock.eventually(lambda: stock.is_listening() and stock.probe("/health").status == 200)
    with client_of(stock) as client:
        return {question: question(client) for question in SUITE}


def client_of(server: ModelServer, key: str = KEY, retries: int = 0) -> OpenAI:
    return OpenAI(
        base_url=f"http://127.0.0.1:{server.api_port}/v1",
        api_key=key,
        max_retries=retries,
        timeout=120,
    )


def test_a_client_that_retries_waits_for_the_model(retried: list[int]) -> None:
    assert retried[-1] == 200
    assert set(retried[:-1]) == {503}


@pytest.mark.parametrize("question", SUITE, ids=lambda question: question.__name__)
def test_answers_as_stock_vllm_does(
    starting: tuple[ModelServer, ModelServer],
    theirs: dict[Question, Answered],
    question: Question,
) -> None:
    with client_of(starting[0]) as client:
        ours = question(client)

    gap = difference(ours, theirs[question])

    if gap is not None:
        print(f"diverged: {question.__name__} where the model was sure by {gap:.2g}")
        assert gap < SURE


def test_a_wrong_key_is_an_authentication_error(
    starting: tuple[ModelServer, ModelServer], retried: list[int]
) -> None:
    with client_of(starting[0], key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_the_id_of_a_request_is_told_by_the_client(
    starting: tuple[ModelServer, ModelServer], retried: list[int]
) -> None:
    with client_of(starting[0]) as client:
        with pytest.raises(openai.NotFoundError) as refused:
            client.completions.create(
                model="other", prompt="Hi", extra_headers={"X-Request-Id": "the-id"}
            )
        assert refused.value.request_id == "the-id"
        assert client.models.list()._request_id

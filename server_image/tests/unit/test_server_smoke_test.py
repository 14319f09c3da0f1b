import asyncio
import base64
import email.policy
import io
import json
import math
import struct
import wave
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from llmservice_server.app import attach_engine_app
from llmservice_server.failures import Reason
from llmservice_server.keys import ApiKeys
from llmservice_server.lifecycle import Phase
from llmservice_server.settings import InvalidSetting, ServerSettings
from llmservice_server.smoke_test import Question, find_failure, judge, question_for
from server_support.in_process import Client, make_stack

GENERATING = ("/v1/completions", "/v1/chat/completions", "/tokenize")


def question(*paths: str) -> Question:
    found = question_for(paths, None)
    assert found is not None
    return found


def stream(*pieces: tuple[str, list[float | None]]) -> str:
    """Return the events of a completion, as vLLM writes them."""
    choices = [{"text": text, "logprobs": {"token_logprobs": all_}} for text, all_ in pieces]
    events = [*(json.dumps({"choices": [each]}) for each in choices), "[DONE]"]
    return "".join(f"data: {each}\n\n" for each in events)


def vector(key: str, *numbers: float) -> str:
    encoded = base64.b64encode(struct.pack(f"={len(numbers)}f", *numbers)).decode()
    return json.dumps({"data": [{key: encoded}]})


@pytest.mark.parametrize(
    ("path", "status", "body", "pattern", "found"),
    [
        ("/v1/completions", 200, stream((" Par", [-0.5]), ("is", [-0.1])), None, None),
        ("/v1/completions", 200, stream((" Par", [-0.5]), ("is", [-0.1])), "Paris$", None),
        # RE2 does not backtrack, so it checks this pattern quickly.
        ("/v1/completions", 200, stream(("a" * 5000, [-1])), "(a*)*b", "does not match"),
        ("/v1/completions", 200, stream(("!", [None]), ("!", [-2])), None, "1 of 2 log-prob"),
        ("/v1/completions", 200, stream(("!", [-math.inf])), None, "are not finite"),
        ("/v1/completions", 200, stream(), None, "answered nothing"),
        ("/v1/completions", 200, 'data: {"error": {}}\n\n', None, "cannot be read"),
        ("/v1/completions", 500, '{"error": "x"}', None, 'status 500: "{\\"error'),
        ("/v1/embeddings", 200, vector("embedding", 0.5, -0.5), None, None),
        ("/v1/embeddings", 200, vector("embedding", 0.5, math.nan), None, "1 of 2 numbers"),
        ("/v1/embeddings", 200, vector("embedding"), None, "answered nothing"),
        ("/v1/embeddings", 200, '{"data": []}', None, "cannot be read"),
        ("/pooling", 200, vector("data", 1.0), None, None),
        ("/pooling", 200, vector("data", math.inf), None, "1 of 1 numbers"),
        ("/v1/audio/transcriptions", 200, '{"text": ""}', None, None),
        ("/v1/audio/transcriptions", 200, "<html>", None, "cannot be read"),
    ],
)
def test_judges_an_answer(
    path: str, status: int, body: str, pattern: str | None, found: str | None
) -> None:
    failure = judge(question(path), status, body, pattern)
    if found is None:
        assert failure is None
    else:
        assert failure is not None
        assert failure.reason is Reason.SMOKE_TEST_FAILED
        assert found in failure.message


def test_quotes_at_most_the_beginning_of_an_answer() -> None:
    failure = judge(question("/v1/completions"), 500, "é" * 100_000, None)
    assert failure is not None
    assert len(failure.message) < 700


@pytest.mark.parametrize(
    ("paths", "asked"),
    [
        (GENERATING, "/v1/completions"),
        # A model that generates and hears is tested with a request for text.
        (("/v1/audio/transcriptions", *GENERATING), "/v1/completions"),
        (("/pooling", "/v1/embeddings", "/score"), "/v1/embeddings"),
        (("/pooling", "/classify", "/score"), "/pooling"),
        (("/v1/audio/transcriptions",), "/v1/audio/transcriptions"),
        (("/tokenize", "/v1/models"), None),
    ],
)
def test_asks_a_question_that_suits_the_kind_of_the_model(
    paths: tuple[str, ...], asked: str | None
) -> None:
    found = question_for(paths, "a prompt")
    assert (None if found is None else found.path) == asked


def answering(answer: Response) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/completions")
    async def complete() -> Response:
        return answer

    return app


async def test_passes_the_gate_before_the_server_is_ready_and_counts_nowhere(
    tmp_path: Path,
) -> None:
    (tmp_path / "key").write_text("secret")
    stack = make_stack(Phase.SMOKE_TESTING, keys=ApiKeys(tmp_path))
    events = StreamingResponse(iter([stream(("Paris", [-1]))]), media_type="text/event-stream")
    attach_engine_app(stack.app, answering(events))

    assert await find_failure(stack.app, question(*GENERATING), ServerSettings()) is None

    assert stack.in_flight.seen == 0
    samples = {sample.name for family in stack.registry.collect() for sample in family.samples}
    assert "llm_requests_total" not in samples
    keyed = {"authorization": "Bearer secret"}
    refused = await Client(stack.app).request("POST", "/v1/completions", b"{}", keyed)
    assert refused.status == 503
    assert "phase smoke_testing" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("settings", "is_failure"),
    [
        (ServerSettings(), False),
        (ServerSettings(smoke_test_prompt="Hello"), True),
        (ServerSettings(smoke_test_expect="Hello"), True),
    ],
)
async def test_a_request_that_does_not_suit_the_model_fails_only_if_it_was_asked_for(
    settings: ServerSettings, is_failure: bool
) -> None:
    stack = make_stack(Phase.SMOKE_TESTING)
    attach_engine_app(stack.app, answering(Response("no text here", 400)))
    failure = await find_failure(stack.app, question(*GENERATING), settings)
    assert (failure is not None) is is_failure
    if failure is not None:
        assert 'status 400: "no text here"' in failure.message


async def test_an_answer_that_does_not_come_in_time_fails_with_what_came() -> None:
    async def slow() -> Any:
        yield "data: {"
        await asyncio.Event().wait()

    stack = make_stack(Phase.SMOKE_TESTING)
    attach_engine_app(stack.app, answering(StreamingResponse(slow())))
    settings = ServerSettings(smoke_test_timeout_seconds=0.5)
    failure = await find_failure(stack.app, question(*GENERATING), settings)
    assert failure is not None
    assert "has not answered within 0.5 seconds" in failure.message


async def test_a_pattern_does_not_suit_a_model_without_text() -> None:
    settings = ServerSettings(smoke_test_expect="Paris")
    failure = await find_failure(make_stack().app, question("/v1/embeddings"), settings)
    assert failure is not None
    assert "generates no text" in failure.message


async def test_a_model_that_hears_gets_a_recording() -> None:
    heard: list[tuple[int, int]] = []
    app = FastAPI()

    @app.post("/v1/audio/transcriptions")
    async def transcribe(request: Request) -> dict[str, str]:
        head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
        form = email.message_from_bytes(head + await request.body(), policy=email.policy.HTTP)
        (part,) = form.iter_parts()
        assert part.get_param("name", header="content-disposition") == "file"
        with wave.open(io.BytesIO(part.get_content())) as recording:
            heard.append((recording.getframerate(), recording.getnframes()))
        return {"text": ""}

    stack = make_stack(Phase.SMOKE_TESTING)
    attach_engine_app(stack.app, app)
    asked = question("/v1/audio/transcriptions")
    assert await find_failure(stack.app, asked, ServerSettings()) is None
    assert heard == [(16_000, 16_000)]


def test_a_pattern_that_is_none_is_refused_with_the_problem() -> None:
    environment = {"LLMSERVICE_SMOKE_TEST_EXPECT": "(?=a)"}
    with pytest.raises(InvalidSetting, match=r"RE2: invalid perl operator: \(\?="):
        ServerSettings.from_environment(environment)

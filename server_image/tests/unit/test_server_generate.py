import asyncio
import json

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError

from llmservice_server.errors import (
    EngineUnavailable,
    RequestRefused,
    answer_refused,
    answer_unavailable,
)
from llmservice_server.generate import create_generate_router
from server_support.in_process import Client, ScriptedEngine


def app_with(engine: ScriptedEngine) -> FastAPI:
    app = FastAPI()
    app.include_router(create_generate_router(engine))
    app.add_exception_handler(RequestRefused, answer_refused)
    app.add_exception_handler(EngineUnavailable, answer_unavailable)
    app.add_exception_handler(RequestValidationError, answer_refused)
    return app


async def test_answers_with_text_finish_reason_and_usage() -> None:
    answer = await Client(app_with(ScriptedEngine("Par", "is"))).post(
        "/generate", {"prompt": "The capital of France is", "max_tokens": 2}
    )
    assert answer.json() == {
        "text": "Paris",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


async def test_streams_events_and_ends_with_usage_and_the_end_mark() -> None:
    answer = await Client(app_with(ScriptedEngine("Par", "is"))).post(
        "/generate", {"prompt": "The capital", "max_tokens": 2, "stream": True}
    )

    events = [line.removeprefix("data: ") for line in answer.body.decode().split("\n\n") if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert json.loads(events[0]) == {"text": "Par", "finish_reason": None}
    assert json.loads(events[1])["usage"]["completion_tokens"] == 2
    assert json.loads(events[1])["finish_reason"] == "length"
    assert events[2] == "[DONE]"


@pytest.mark.parametrize(("max_tokens", "asked"), [(29, 29), (31, 30), (2**40, 30), (None, 30)])
async def test_lowers_the_length_of_an_answer_to_the_room_that_the_prompt_leaves(
    max_tokens: int | None, asked: int
) -> None:
    engine = ScriptedEngine("x")
    wanted = {} if max_tokens is None else {"max_tokens": max_tokens}
    answer = await Client(app_with(engine)).post("/generate", {"prompt": "one two", **wanted})
    assert answer.status == 200
    assert answer.json()["finish_reason"] == "length"
    assert engine.wanted is not None
    assert engine.wanted.max_tokens == asked


async def test_says_to_shorten_a_prompt_that_fills_the_context() -> None:
    answer = await Client(app_with(ScriptedEngine("x"))).post(
        "/generate", {"prompt": "word " * 32, "max_tokens": 1}
    )
    assert answer.json()["error"]["message"].endswith("shorten the prompt")


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": ""},
        {"prompt": "a", "max_tokens": 0},
        {"prompt": "a", "max_tokens": 1e30},
        {"prompt": "a", "temperature": -1},
        {"prompt": "a", "temperature": 1000},
        {"prompt": "a", "top_p": 0},
        {"prompt": "a", "seed": 2**80},
        {"prompt": "a", "stop": [""]},
        {"prompt": "a", "max_token": 5},
        {"max_tokens": 5},
        [],
        b'{"prompt": "a", "temperature": NaN}',
    ],
    ids=str,
)
async def test_refuses_values_that_the_engine_would_choke_on(wrong: object) -> None:
    engine = ScriptedEngine("x")
    answer = await Client(app_with(engine)).post("/generate", wrong)
    assert answer.status == 400
    assert not engine.started.is_set()


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
async def test_a_body_of_another_type_is_refused_with_the_header_to_send(kind: str) -> None:
    answer = await Client(app_with(ScriptedEngine("x"))).request(
        "POST", "/generate", b'{"prompt": "a"}', {"content-type": kind}
    )
    assert answer.status == 400
    assert answer.json()["error"]["message"] == (
        "The body must be JSON: send the header Content-Type: application/json"
    )


@pytest.mark.parametrize("kind", ["Application/JSON; charset=utf-8", "application/problem+json"])
async def test_a_body_of_any_json_type_is_read(kind: str) -> None:
    answer = await Client(app_with(ScriptedEngine("x"))).request(
        "POST", "/generate", b'{"prompt": "a"}', {"content-type": kind}
    )
    assert answer.status == 200


@pytest.mark.parametrize("texts", [(), ("some",)])
async def test_a_plain_request_answers_503_when_the_engine_dies(texts: tuple[str, ...]) -> None:
    answer = await Client(app_with(ScriptedEngine(*texts, dies=True))).post(
        "/generate", {"prompt": "a", "max_tokens": 9}
    )
    assert answer.status == 503
    assert "retry-after" in answer.headers


async def test_a_stream_answers_503_when_the_engine_dies_before_the_first_token() -> None:
    answer = await Client(app_with(ScriptedEngine(dies=True))).post(
        "/generate", {"prompt": "a", "max_tokens": 9, "stream": True}
    )
    assert answer.status == 503


async def test_a_stream_that_the_engine_breaks_ends_with_an_error_and_no_end_mark() -> None:
    answer = await Client(app_with(ScriptedEngine("some", dies=True))).post(
        "/generate", {"prompt": "a", "max_tokens": 9, "stream": True}
    )

    assert answer.status == 200
    last = answer.body.decode().strip().rsplit("\n\n", 1)[1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == 503
    assert b"[DONE]" not in answer.body
    assert b'finish_reason":"' not in answer.body


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_token_aborts_the_generation(
    stream: bool,
) -> None:
    engine = ScriptedEngine(hangs=True)
    client = Client(app_with(engine))
    asking = asyncio.ensure_future(
        client.post("/generate", {"prompt": "a", "max_tokens": 9, "stream": stream})
    )
    await engine.started.wait()
    assert not engine.aborted

    client.leave()

    assert (await asking).status == 499
    assert engine.aborted


async def test_a_client_that_leaves_in_the_middle_of_a_stream_aborts_the_generation() -> None:
    engine = ScriptedEngine("some", hangs=True)
    client = Client(app_with(engine))
    asking = asyncio.ensure_future(
        client.post("/generate", {"prompt": "a", "max_tokens": 9, "stream": True})
    )
    await client.answered.wait()

    client.leave()
    await asking

    assert engine.aborted

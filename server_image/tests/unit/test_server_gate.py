import asyncio
import json
import logging
import re

import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel, model_validator
from starlette.responses import Response, StreamingResponse

from llmservice_server.app import attach_engine_app
from llmservice_server.errors import answer_unexpected
from llmservice_server.lifecycle import Phase
from llmservice_server.logs import JsonFormatter
from llmservice_server.queue_place import Refusal, note_refusal
from llmservice_server.settings import ServerSettings
from llmservice_server.streaming import event
from server_support.in_process import Client, make_stack


def engine_app(status: int = 200) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models", status_code=status)
    async def models() -> dict[str, str]:
        return {"object": "list"}

    @app.get("/pause")
    async def pause() -> dict[str, str]:
        return {"paused": "yes"}

    return app


@pytest.mark.parametrize("phase", [Phase.IMPORTING, Phase.LOADING, Phase.WARMING_UP])
async def test_answers_503_with_retry_after_until_the_model_is_ready(phase: Phase) -> None:
    answer = await Client(make_stack(phase).app).get("/v1/models")

    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"] == {
        "message": f"the model is not ready yet (phase {phase}); try again later",
        "type": "ServiceUnavailable",
        "param": None,
        "code": 503,
    }


async def test_serves_once_it_is_ready_although_it_was_asked_before() -> None:
    stack = make_stack(Phase.LOADING)
    assert (await Client(stack.app).get("/v1/models")).status == 503

    attach_engine_app(stack.app, engine_app())
    stack.lifecycle.enter(Phase.READY)

    answer = await Client(stack.app).get("/v1/models")
    assert (answer.status, answer.json()) == (200, {"object": "list"})
    assert "connection" not in answer.headers


async def test_still_serves_at_the_start_of_a_drain_but_closes_the_connection() -> None:
    stack = make_stack()
    attach_engine_app(stack.app, engine_app())
    stack.lifecycle.enter(Phase.DRAINING)

    answer = await Client(stack.app).get("/v1/models")

    assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_refuses_new_requests_late_in_a_drain() -> None:
    stack = make_stack()
    attach_engine_app(stack.app, engine_app())
    stack.lifecycle.enter(Phase.DRAINING)
    stack.lifecycle.accepts_requests = False

    answer = await Client(stack.app).get("/v1/models")

    assert answer.status == 503
    assert "shutting down" in answer.json()["error"]["message"]
    assert answer.headers["connection"] == "close"
    assert "retry-after" in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/pause",
        "/metrics",
        "/v1/load_lora_adapter",
        "/v1/responses/a/b/c",
        "/v1/chat/completions/render",
        "/",
        "/v1/",
        "/invocations",
    ],
)
async def test_routes_that_do_not_serve_are_not_there(path: str) -> None:
    stack = make_stack()
    attach_engine_app(stack.app, engine_app())

    answer = await Client(stack.app).get(path)

    assert answer.status == 404
    assert answer.json()["error"]["code"] == 404


async def test_administration_can_be_opened() -> None:
    stack = make_stack(settings=ServerSettings(administration_routes=True))
    attach_engine_app(stack.app, engine_app())
    assert (await Client(stack.app).get("/pause")).json() == {"paused": "yes"}
    assert (await Client(stack.app).get("/nothing")).status == 404


async def test_a_503_of_the_engine_gets_a_retry_after() -> None:
    stack = make_stack()
    attach_engine_app(stack.app, engine_app(status=503))
    assert "retry-after" in (await Client(stack.app).get("/v1/models")).headers


@pytest.mark.parametrize("refusal", [*Refusal, None])
async def test_a_refusal_of_the_engine_is_counted_by_its_reason(refusal: Refusal | None) -> None:
    stack, inner = make_stack(), FastAPI()

    @inner.get("/v1/models")
    async def refuse() -> Response:
        if refusal is not None:
            note_refusal(refusal)
        return Response(status_code=503)

    attach_engine_app(stack.app, inner)
    await Client(stack.app).get("/v1/models")
    counted = {
        each: stack.registry.get_sample_value("llm_requests_rejected_total", {"reason": each})
        for each in Refusal
    }
    assert counted == {each: 1 if each is refusal else None for each in Refusal}


async def test_counts_requests_by_route_and_status() -> None:
    stack = make_stack()
    attach_engine_app(stack.app, engine_app())
    await Client(stack.app).get("/v1/models")
    for path in ("/wp-admin", "/etc/passwd"):
        await Client(stack.app).get(path)

    def counted(route: str, status: int) -> float | None:
        return stack.registry.get_sample_value(
            "llm_requests_total", {"route": route, "status": str(status)}
        )

    assert counted("/v1/models", 200) == 1
    assert counted("unknown", 404) == 2
    assert counted("/wp-admin", 404) is None
    assert (
        stack.registry.get_sample_value(
            "llm_request_duration_seconds_count", {"route": "/v1/models"}
        )
        == 1
    )


async def test_a_request_is_in_flight_until_its_answer_has_ended() -> None:
    stack = make_stack()
    inner = FastAPI()
    go_on = asyncio.Event()

    @inner.get("/v1/models")
    async def slow() -> dict[str, str]:
        await go_on.wait()
        return {}

    attach_engine_app(stack.app, inner)
    asking = asyncio.ensure_future(Client(stack.app).get("/v1/models"))
    while stack.in_flight.count == 0:
        await asyncio.wait((asking,), timeout=0)

    assert stack.registry.get_sample_value("llm_requests_in_flight") == 1
    assert not await stack.in_flight.wait_until_none(timeout=0.01)

    go_on.set()
    await asking
    assert await stack.in_flight.wait_until_none(timeout=0.01)
    assert stack.registry.get_sample_value("llm_requests_in_flight") == 0


def app_that_tells_ids() -> FastAPI:
    inner = FastAPI()

    @inner.get("/v1/models")
    async def models(request: Request) -> dict[str, list[str]]:
        return {"ids": request.headers.getlist("x-request-id")}

    return inner


@pytest.mark.parametrize("known", ["abc-123", "00-f.f:f@f/f+f=f_f", "a" * 128])
async def test_a_request_keeps_the_id_that_the_client_gave_it(known: str) -> None:
    stack = make_stack()
    attach_engine_app(stack.app, app_that_tells_ids())

    answer = await Client(stack.app).request("GET", "/v1/models", headers={"x-request-id": known})

    assert answer.headers["x-request-id"] == known
    assert answer.json() == {"ids": [known]}


@pytest.mark.parametrize(
    "strange", ["", " ", "a b", "a\r\nx-injected: 1", "a" * 129, '"', "<script>", "\x00", "é"]
)
async def test_an_id_that_is_none_is_replaced_for_everybody(strange: str) -> None:
    stack = make_stack()
    attach_engine_app(stack.app, app_that_tells_ids())

    answer = await Client(stack.app).request("GET", "/v1/models", headers={"x-request-id": strange})

    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.json() == {"ids": [answer.headers["x-request-id"]]}


async def test_every_refusal_has_an_id_and_each_request_its_own() -> None:
    loading, ready = make_stack(Phase.LOADING), make_stack()
    attach_engine_app(ready.app, engine_app())
    answers = [
        await Client(stack.app).get(path)
        for stack in (loading, ready)
        for path in ("/v1/models", "/nothing")
    ]
    assert [answer.status for answer in answers] == [503, 404, 200, 404]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4


async def test_a_request_is_one_line_of_log_that_says_what_came_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    stack = make_stack()
    attach_engine_app(stack.app, engine_app())

    await Client(stack.app).request(
        "POST", "/v1/responses/resp_my-secret/cancel", headers={"x-request-id": "the-id"}
    )

    (record,) = caplog.records
    line = json.loads(JsonFormatter().format(record))
    # The line has no request id, because the formatter runs outside the request's task here.
    assert line["message"] == "POST /v1/responses/{response_id}/cancel 404"
    assert (line["route"], line["status"]) == ("/v1/responses/{response_id}/cancel", 404)
    assert 0 <= line["seconds"] < 5


async def test_an_error_that_nobody_foresaw_is_in_the_log_under_the_id_that_the_client_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stack = make_stack()
    inner = FastAPI()
    written: list[str] = []

    @inner.get("/v1/models")
    async def models(request: Request) -> None:
        raise KeyError(request.headers["x-said"])

    class Writing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(JsonFormatter().format(record))

    attach_engine_app(stack.app, inner)
    handler = Writing()
    logging.getLogger("llmservice_server.gate").addHandler(handler)
    try:
        answer = await Client(stack.app).request(
            "GET", "/v1/models", headers={"x-request-id": "the-id", "x-said": "tulip"}
        )
    finally:
        logging.getLogger("llmservice_server.gate").removeHandler(handler)

    assert answer.status == 500
    told = answer.json()["error"]["message"] if answer.body.startswith(b"{") else ""
    lines = [json.loads(line) for line in written]
    assert {line["requestId"] for line in lines} == {"the-id"}
    assert "KeyError" in lines[0]["error"]
    # The text of an error may quote the request.
    assert "tulip" not in "".join(written) + told


@pytest.mark.parametrize("path", ["//v1/models", "//v1/models/", "/v1//models", "/V1/models"])
async def test_a_path_is_served_only_as_it_is_written(path: str) -> None:
    stack = make_stack()
    attach_engine_app(stack.app, engine_app())
    answer = await Client(stack.app).get(path)
    assert (answer.status, "location" in answer.headers) == (404, False)


async def test_slashes_at_the_end_lead_to_the_route_and_keep_the_query() -> None:
    stack = make_stack()
    attach_engine_app(stack.app, engine_app())
    answer = await Client(stack.app).get("/v1/models/", query="a=b")
    assert (answer.status, answer.headers["location"]) == (307, "../models?a=b")
    assert answer.body == b""
    # The request has not reached the engine, so it must not prolong a drain.
    assert stack.in_flight.seen == 0


async def test_an_error_of_a_stream_names_the_parameter_that_caused_it() -> None:
    stack, inner = make_stack(), FastAPI()
    error = {"message": "no", "type": "x", "param": "structured_outputs", "code": 400}

    @inner.post("/generate")
    async def generate() -> StreamingResponse:
        return StreamingResponse(iter([event({"error": error})]), media_type="text/event-stream")

    attach_engine_app(stack.app, inner)
    answer = await Client(stack.app).post("/generate", {})
    assert (answer.status, answer.json()["error"]["param"]) == (400, "structured_outputs")


async def test_a_message_has_the_header_that_clients_of_its_api_read() -> None:
    stack = make_stack()
    attach_engine_app(stack.app, engine_app())
    for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/models"):
        answer = await Client(stack.app).request("POST", path, headers={"x-request-id": "the-id"})
        assert answer.headers["x-request-id"] == "the-id"
        expected = None if path == "/v1/models" else "the-id"
        assert answer.headers.get("request-id") == expected


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_route_may_allow_less_than_the_server(is_announced: bool) -> None:
    stack, inner = make_stack(), FastAPI()

    @inner.post("/generative_scoring")
    @inner.post("/generate")
    async def answer(request: Request) -> int:
        return len(await request.body())

    attach_engine_app(stack.app, inner)
    body = b'{"prompt": "' + b"a" * 256 * 1024 + b'"}'
    headers = {"content-length": str(len(body))} if is_announced else {}
    statuses = {
        path: (await Client(stack.app).request("POST", path, body, headers)).status
        for path in ("/generative_scoring", "/generate")
    }
    assert statuses == {"/generative_scoring": 413, "/generate": 200}


async def test_an_open_administration_redirects_nobody() -> None:
    stack = make_stack(settings=ServerSettings(administration_routes=True))
    inner = engine_app()
    inner.router.redirect_slashes = False
    attach_engine_app(stack.app, inner)
    assert (await Client(stack.app).get("/pause/")).status == 404


async def test_a_body_that_breaks_a_validator_is_the_fault_of_who_sent_it() -> None:
    class Wanted(BaseModel):
        prompt: str

        @model_validator(mode="before")
        @classmethod
        def look(cls, value: dict[str, object]) -> dict[str, object]:
            value["prompt"].strip()  # type: ignore[attr-defined]
            return value

    inner = FastAPI()

    @inner.post("/generate")
    async def generate(wanted: Wanted) -> None:
        pass

    stack = make_stack()
    attach_engine_app(stack.app, inner)
    inner.add_exception_handler(Exception, answer_unexpected)

    answer = await Client(stack.app).post("/generate", {"prompt": 5})

    assert (answer.status, answer.json()["error"]["code"]) == (400, 400)
    assert "AttributeError" in answer.json()["error"]["message"]

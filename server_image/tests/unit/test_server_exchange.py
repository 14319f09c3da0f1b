"""Tests the limits of a request, and the correct end of its response."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator

import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from llmservice_server import exchange
from llmservice_server.app import attach_engine_app
from llmservice_server.settings import ServerSettings
from llmservice_server.streaming import until_disconnect
from server_support.in_process import Client, Stack, make_stack

TEXT = 'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n'
ERROR = 'data: {"error": {"message": "it broke", "type": "X", "param": null, "code": 500}}\n\n'
END = "data: [DONE]\n\n"
TOO_LONG = (
    "the request took longer than 0.02 seconds; ask for fewer tokens, or raise "
    "spec.serving.requestTimeoutSeconds"
)


class Inner:
    """Replacement for vLLM's application. It echoes, streams given events, or never responds."""

    def __init__(self, *events: str, then_hangs: bool = False) -> None:
        self.ended = asyncio.Event()
        self.app = FastAPI()

        async def stream() -> AsyncGenerator[str, None]:
            try:
                for each in events:
                    yield each
                if then_hangs:
                    await asyncio.Event().wait()
            finally:
                self.ended.set()

        @self.app.post("/v1/completions")
        @self.app.post("/v1/messages")
        @self.app.post("/v1/responses")
        async def streaming() -> Response:
            return StreamingResponse(stream(), media_type="text/event-stream")

        @self.app.post("/generate")
        async def hang(request: Request) -> Response:
            await request.body()
            try:
                await until_disconnect(request, asyncio.Event().wait())
            finally:
                self.ended.set()
            raise AssertionError("unreachable")

        @self.app.post("/tokenize")
        async def echo(request: Request) -> dict[str, int]:
            return {"bytes": len(await request.body())}


def stack_of(inner: Inner, **settings: float) -> Stack:
    stack = make_stack(settings=ServerSettings(**settings))  # type: ignore[arg-type]
    attach_engine_app(stack.app, inner.app)
    return stack


def rejected(stack: Stack, reason: str) -> float | None:
    return stack.registry.get_sample_value("llm_requests_rejected_total", {"reason": reason})


async def test_a_body_that_is_announced_too_long_is_refused_unread() -> None:
    stack = stack_of(Inner(), max_body_bytes=10)
    client = Client(stack.app)
    answer = await client.request("POST", "/tokenize", b"x", {"content-length": "11"})
    assert answer.status == 413
    assert answer.json()["error"]["message"] == (
        "the body is longer than 10 bytes; send a shorter one"
    )
    assert rejected(stack, "body_too_large") == 1


async def test_a_body_that_turns_out_too_long_is_refused() -> None:
    stack = stack_of(Inner(), max_body_bytes=10)
    answer = await Client(stack.app).request("POST", "/tokenize", [b"12345"] * 3)
    assert (answer.status, answer.json()["error"]["code"]) == (413, 413)
    assert rejected(stack, "body_too_large") == 1


async def test_a_body_of_the_longest_length_passes() -> None:
    answer = await Client(stack_of(Inner(), max_body_bytes=10).app).request(
        "POST", "/tokenize", [b"12345", b"12345"], {"content-length": "10"}
    )
    assert answer.json() == {"bytes": 10}


async def test_bodies_that_do_not_fit_together_are_refused_to_be_sent_again() -> None:
    stack = stack_of(Inner(), max_body_bytes=10)
    clients = [Client(stack.app) for _ in range(16)]
    held = [asyncio.ensure_future(each.post("/generate", b"1234567890")) for each in clients]
    while stack.in_flight.count < 16:
        await asyncio.wait(held, timeout=0)
    await asyncio.wait(held, timeout=0.05)

    answer = await Client(stack.app).post("/tokenize", b"1")

    assert (answer.status, "retry-after" in answer.headers) == (503, True)
    assert rejected(stack, "bodies_full") == 1
    assert stack.turned_away == [1], "an autoscaler sees nothing of it"
    assert rejected(stack, "queue_full") is None
    for client in clients:
        client.leave()
    await asyncio.gather(*held)
    assert (await Client(stack.app).post("/tokenize", b"1234567890")).status == 200


async def test_long_bodies_that_never_end_leave_room_for_short_ones() -> None:
    stack = stack_of(Inner(), max_body_bytes=100_000)
    clients = [Client(stack.app) for _ in range(20)]
    unfinished = [b"1" * 99_999, b""]
    sent = [
        asyncio.ensure_future(each.request("POST", "/tokenize", unfinished)) for each in clients
    ]
    await asyncio.wait(sent, timeout=0.2)
    assert rejected(stack, "bodies_full") == 5
    # A long body would be refused now.
    assert (await Client(stack.app).post("/tokenize", b"1" * 16_000)).status == 200
    assert (await Client(stack.app).post("/tokenize", b"1" * 99_000)).status == 503
    for client in clients:
        client.leave()
    await asyncio.gather(*sent)


async def test_a_body_that_stops_arriving_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_BODY_SECONDS", 0.02)
    stack = stack_of(Inner())
    answer = await Client(stack.app).request("POST", "/tokenize", [b"1", b""])
    assert (answer.status, answer.json()["error"]["code"]) == (408, 408)
    assert rejected(stack, "slow_body") == 1


async def test_a_plain_request_that_takes_too_long_is_aborted_with_504() -> None:
    inner = Inner()
    stack = stack_of(inner, request_timeout_seconds=0.02)
    answer = await Client(stack.app).post("/generate", {})
    assert answer.status == 504
    assert answer.json()["error"]["message"] == TOO_LONG
    assert inner.ended.is_set()
    assert rejected(stack, "timeout") == 1
    assert stack.in_flight.count == 0


async def test_a_stream_that_takes_too_long_ends_with_an_error_and_no_end_mark() -> None:
    inner = Inner(TEXT, then_hangs=True)
    answer = await Client(stack_of(inner, request_timeout_seconds=0.02).app).post(
        "/v1/completions", {}
    )
    assert answer.status == 200
    *_, last, nothing = answer.body.decode().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == 504
    assert not nothing
    assert b"[DONE]" not in answer.body
    assert inner.ended.is_set()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (
            "/v1/messages",
            {"type": "error", "error": {"type": "timeout_error", "message": TOO_LONG}},
        ),
        (
            "/v1/responses",
            {
                "type": "error",
                "sequence_number": 2,
                "code": "504",
                "message": TOO_LONG,
                "param": None,
                "error": {
                    "message": TOO_LONG,
                    "type": "GatewayTimeout",
                    "param": None,
                    "code": 504,
                },
            },
        ),
    ],
)
async def test_a_cut_stream_ends_with_the_event_that_clients_of_its_route_take_for_an_error(
    path: str, told: object
) -> None:
    stack = stack_of(Inner(TEXT, TEXT, then_hangs=True), request_timeout_seconds=0.02)
    answer = await Client(stack.app).post(path, {})
    *_, last, nothing = answer.body.decode().split("\n\n")
    name, data = last.split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: ")) == told
    assert not nothing


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("400", "invalid_request_error"),
        ("500", "api_error"),
        ("503", "overloaded_error"),
        ("504", "timeout_error"),
    ],
)
async def test_a_broken_message_names_its_error_as_anthropic_does(code: str, kind: str) -> None:
    broken = Inner(TEXT, ERROR.replace("500", code))
    answer = await Client(stack_of(broken).app).post("/v1/messages", {})
    told = {"type": "error", "error": {"type": kind, "message": "it broke"}}
    *_, error = answer.body.decode().strip().split("\n\n")
    assert error.startswith("event: error\ndata: ")
    assert json.loads(error.removeprefix("event: error\ndata: ")) == told


@pytest.mark.parametrize("has_died", [False, True])
async def test_a_message_that_begins_with_an_error_of_its_own_has_a_status(has_died: bool) -> None:
    error = {
        "type": "error",
        "error": {"type": "internal_error", "message": "input_value='secret'"},
    }
    stack = stack_of(Inner(f"event: error\ndata: {json.dumps(error)}\n\n"))
    stack.lifecycle.engine_has_died = lambda: has_died
    answer = await Client(stack.app).post("/v1/messages", {})
    assert answer.status == (503 if has_died else 500)
    assert ("retry-after" in answer.headers) is has_died
    assert "secret" not in answer.body.decode()


async def test_a_stream_that_takes_too_long_to_begin_answers_504() -> None:
    answer = await Client(stack_of(Inner(then_hangs=True), request_timeout_seconds=0.02).app).post(
        "/v1/completions", {}
    )
    assert (answer.status, answer.json()["error"]["code"]) == (504, 504)


async def test_a_whole_stream_passes_unchanged() -> None:
    answer = await Client(stack_of(Inner(TEXT, TEXT, END)).app).post("/v1/completions", {})
    assert (answer.status, answer.body.decode()) == (200, TEXT + TEXT + END)


async def test_a_broken_stream_does_not_end_like_a_whole_one() -> None:
    answer = await Client(stack_of(Inner(TEXT, ERROR, END)).app).post("/v1/completions", {})
    text, error, nothing = answer.body.decode().split("\n\n")
    assert text + "\n\n" == TEXT
    assert json.loads(error.removeprefix("data: "))["error"] == {
        "message": "it broke",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
    assert not nothing


async def test_a_stream_that_begins_with_an_error_answers_with_its_status() -> None:
    stack = stack_of(Inner(ERROR.replace("500", "503"), END))
    answer = await Client(stack.app).post("/v1/completions", {})
    assert (answer.status, answer.json()["error"]["message"]) == (503, "it broke")
    assert answer.headers["content-type"] == "application/json"
    assert "retry-after" in answer.headers
    counted = {"route": "/v1/completions", "status": "503"}
    assert stack.registry.get_sample_value("llm_requests_total", counted) == 1


async def test_a_stream_broken_by_the_death_of_the_engine_says_that_it_can_be_sent_again() -> None:
    stack = stack_of(Inner(TEXT, ERROR, END))
    stack.lifecycle.engine_has_died = lambda: True
    answer = await Client(stack.app).post("/v1/completions", {})
    error = json.loads(answer.body.decode().split("\n\n")[1].removeprefix("data: "))["error"]
    assert (error["code"], "send the request again" in error["message"]) == (503, True)


async def test_a_stream_that_the_application_drops_ends_with_an_error_and_no_end_mark() -> None:
    async def stream() -> AsyncGenerator[str, None]:
        yield TEXT
        raise ValueError("a defect")

    inner = FastAPI()

    @inner.post("/v1/responses")
    async def responses() -> Response:
        return StreamingResponse(stream(), media_type="text/event-stream")

    for has_died, status in ((False, 500), (True, 503)):
        stack = make_stack()
        attach_engine_app(stack.app, inner)
        stack.lifecycle.engine_has_died = lambda has_died=has_died: has_died  # type: ignore[misc]
        answer = await Client(stack.app).post("/v1/responses", {})
        text, error, nothing = answer.body.decode().split("\n\n")
        assert text + "\n\n" == TEXT
        assert json.loads(error.removeprefix("event: error\ndata: "))["error"]["code"] == status
        assert "defect" not in error
        assert not nothing


async def test_text_that_looks_like_an_error_or_an_end_mark_passes() -> None:
    quoted = 'data: {"choices":[{"text":"data: {\\"error\\"} [DONE]"}]}\n\n'
    answer = await Client(stack_of(Inner(quoted, END)).app).post("/v1/completions", {})
    assert answer.body.decode() == quoted + END


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
async def test_a_client_that_leaves_is_counted_as_aborted(path: str) -> None:
    inner = Inner(TEXT, then_hangs=True)
    stack = stack_of(inner)
    client = Client(stack.app)
    asking = asyncio.ensure_future(client.post(path, {}))
    while stack.in_flight.count == 0:
        await asyncio.wait((asking,), timeout=0)

    client.leave()
    await asking

    assert inner.ended.is_set()
    value = stack.registry.get_sample_value
    assert value("llm_requests_aborted_total", {"route": path}) == 1
    assert value("llm_requests_total", {"route": path, "status": "499"}) == 1


@pytest.mark.parametrize("is_handled", [False, True], ids=["as it is", "behind Starlette's own"])
@pytest.mark.parametrize(("error", "status"), [(ValueError("x"), 400), (KeyError("x"), 500)])
async def test_a_stream_that_breaks_before_its_first_event_has_a_status(
    error: Exception, status: int, is_handled: bool
) -> None:
    async def stream() -> AsyncGenerator[str, None]:
        raise error
        yield ""

    inner = FastAPI()
    if is_handled:
        # vLLM's application has such a handler, but it has no effect after a stream has started.
        inner.add_exception_handler(type(error), lambda *_: Response(status_code=418))

    @inner.post("/v1/responses")
    async def responses() -> Response:
        return StreamingResponse(stream(), media_type="text/event-stream")

    stack = make_stack()
    attach_engine_app(stack.app, inner)
    answer = await Client(stack.app).post("/v1/responses", {})
    assert (answer.status, answer.json()["error"]["code"]) == (status, status)


async def test_others_are_served_between_long_bodies_that_arrive_together() -> None:
    stack, inner, begins = make_stack(), FastAPI(), []
    seconds = 0.02

    @inner.post("/tokenize")
    async def parse(request: Request) -> None:
        await request.body()
        begins.append(time.monotonic())
        while time.monotonic() < begins[-1] + seconds:
            pass  # the application parses on the event loop

    attach_engine_app(stack.app, inner)
    long = [Client(stack.app).post("/tokenize", {"prompt": "a" * 20_000}) for _ in range(4)]
    answers = await asyncio.gather(*long)

    assert {answer.status for answer in answers} == {200}
    pauses = [later - earlier for earlier, later in itertools.pairwise(begins)]
    # Between two starts, `seconds` pass for the parsing, and as many for other requests.
    assert min(pauses) >= 1.9 * seconds


async def test_a_long_body_that_waits_for_its_turn_ends_at_the_timeout() -> None:
    stack, inner = make_stack(settings=ServerSettings(request_timeout_seconds=0.02)), FastAPI()

    @inner.post("/tokenize")
    async def parse(request: Request) -> None:
        await request.body()
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            pass

    attach_engine_app(stack.app, inner)
    long = [Client(stack.app).post("/tokenize", {"prompt": "a" * 20_000}) for _ in range(2)]
    first, second = await asyncio.gather(*long)

    assert first.status == 200
    assert second.status == 504
    assert second.json()["error"]["message"] == TOO_LONG


async def test_a_text_to_tokenize_has_a_limit_of_its_own() -> None:
    stack = stack_of(Inner())
    answers = [
        await Client(stack.app).request("POST", "/tokenize", body)
        for body in (b"a" * 2**20, b"a" * (2**20 + 1), [b"a" * 2**20, b"a"])
    ]
    assert [answer.status for answer in answers] == [200, 413, 413]
    assert "1048576 bytes" in answers[1].json()["error"]["message"]

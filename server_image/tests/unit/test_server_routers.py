"""Tests the headers that describe a request to a replica, and those that tell a router to retry."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from starlette.responses import Response, StreamingResponse

from llmservice_server.app import attach_engine_app
from llmservice_server.engine_usage import EngineUsage, Objectives
from llmservice_server.errors import RETRY_HEADER
from llmservice_server.gate import ENGINE_FAILED
from llmservice_server.keys import ApiKeys
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.management import create_management_app
from llmservice_server.routers import NO_ROUTER, Readers, RouterHeaders, current_router_headers
from llmservice_server.settings import ServerSettings
from llmservice_server.stored_responses import STORED_HEADER, note_stored_responses
from llmservice_server.streaming import until_disconnect
from server_support.in_process import Answer, Client, Stack, make_stack

HELD, ATTEMPT = "x-llm-router-held-ms", "x-llm-router-attempt"
ADDRESS = "127.0.0.1"
"""Address of every in-process client."""


def stack_that_reads_router_headers() -> tuple[Stack, list[RouterHeaders]]:
    stack, inner = make_stack(), FastAPI()
    seen: list[RouterHeaders] = []

    @inner.get("/v1/models")
    async def models() -> dict[str, str]:
        seen.append(current_router_headers.get())
        return {}

    attach_engine_app(stack.app, inner)
    return stack, seen


def ignored(stack: Stack, reason: str) -> float:
    name = "llm_router_headers_ignored_total"
    return stack.registry.get_sample_value(name, {"reason": reason}) or 0.0


@pytest.mark.parametrize(
    ("headers", "router"),
    [
        ({}, NO_ROUTER),
        ({HELD: "1500"}, RouterHeaders(1.5)),
        ({HELD: "0", ATTEMPT: "1"}, RouterHeaders(will_retry=True)),
        ({HELD: "250", ATTEMPT: "2"}, RouterHeaders(0.25)),
        ({HELD: "9999999"}, RouterHeaders(3600.0)),
    ],
)
async def test_a_router_tells_how_long_it_held_a_request_and_which_attempt_this_is(
    headers: dict[str, str], router: RouterHeaders
) -> None:
    stack, seen = stack_that_reads_router_headers()
    stack.readers.note(ADDRESS)
    await Client(stack.app).request("GET", "/v1/models", headers=headers)
    assert seen == [router]
    assert ignored(stack, "malformed") == ignored(stack, "unknown_sender") == 0


@pytest.mark.parametrize(
    "headers",
    [{HELD: value} for value in ("", "-1", "1.5", "1e3", "٣", "12345678", " 1", "0x1", "1,2")]
    + [{HELD: "5", ATTEMPT: value} for value in ("", "0", "10", "one")],
    ids=str,
)
async def test_a_malformed_header_is_ignored_and_counted(headers: dict[str, str]) -> None:
    stack, seen = stack_that_reads_router_headers()
    stack.readers.note(ADDRESS)
    answer = await Client(stack.app).request("GET", "/v1/models", headers=headers)
    assert (answer.status, seen, ignored(stack, "malformed")) == (200, [NO_ROUTER], 1)


async def test_headers_of_a_client_are_ignored_and_counted() -> None:
    stack, seen = stack_that_reads_router_headers()
    stack.readers.note("10.0.0.1")
    await Client(stack.app).request("GET", "/v1/models", headers={HELD: "1500", ATTEMPT: "1"})
    assert (seen, ignored(stack, "unknown_sender")) == ([NO_ROUTER], 1)


async def test_the_sender_is_known_by_its_reports_from_the_management_port() -> None:
    readers, loop = Readers(), asyncio.get_running_loop()
    usage = EngineUsage(Objectives())
    management = create_management_app(
        Lifecycle(), CollectorRegistry(), usage, loop, readers=readers
    )
    for path in ("/livez", "/readyz", "/metrics", "/identity"):
        await Client(management).get(path)
    assert not readers.knows(ADDRESS)
    assert (await Client(management).get("/autoscale")).status == 200
    assert readers.knows(ADDRESS)


def test_a_reader_is_forgotten_after_some_seconds_and_the_memory_is_bounded() -> None:
    now = 100.0
    readers = Readers(lambda: now)
    readers.note("a")
    now += 9
    assert readers.knows("a")
    now += 1
    assert not readers.knows("a")

    readers.note("a")
    for number in range(1000):
        readers.note(str(number))
        readers.note("a")
    assert readers.knows("a")
    assert sum(readers.knows(str(number)) for number in range(1000)) < 64


@pytest.mark.parametrize(("attempt", "counted"), [(None, 1), ("1", 0), ("2", 1)])
async def test_a_request_without_room_is_demand_once_however_often_a_router_sends_it(
    attempt: str | None, counted: int
) -> None:
    stack = make_stack(settings=ServerSettings(max_body_bytes=10))
    attach_engine_app(stack.app, app_that_waits())
    stack.readers.note(ADDRESS)
    headers = {} if attempt is None else {ATTEMPT: attempt}
    async with full_of_bodies(stack):
        answer = await Client(stack.app).request("POST", "/tokenize", b"1", headers)
    assert answer.status == 503
    assert sum(stack.turned_away) == counted


def app_that_waits() -> FastAPI:
    """Return an application that reads the body of a request and then waits for ever."""
    inner = FastAPI()

    @inner.post("/generate")
    @inner.post("/tokenize")
    async def wait(request: Request) -> None:
        await request.body()
        await until_disconnect(request, asyncio.Event().wait())

    return inner


@asynccontextmanager
async def full_of_bodies(stack: Stack) -> AsyncIterator[None]:
    """Fill the room for bodies, which holds sixteen bodies of maximum length."""
    clients = [Client(stack.app) for _ in range(16)]
    held = [asyncio.ensure_future(each.post("/generate", b"1234567890")) for each in clients]
    while stack.in_flight.count < 16:
        await asyncio.wait(held, timeout=0)
    await asyncio.wait(held, timeout=0.05)
    yield
    for client in clients:
        client.leave()
    await asyncio.gather(*held, return_exceptions=True)


async def refused_while_loading() -> Answer:
    return await Client(make_stack(Phase.LOADING).app).get("/v1/models")


async def refused_in_a_drain() -> Answer:
    stack = make_stack()
    stack.lifecycle.enter(Phase.DRAINING)
    stack.lifecycle.accepts_requests = False
    return await Client(stack.app).get("/v1/models")


async def refused_after_a_failure() -> Answer:
    stack = make_stack()
    stack.lifecycle.fail("EngineDied", "it ended")
    return await Client(stack.app).get("/v1/models")


async def refused_without_room_for_the_body() -> Answer:
    stack = make_stack(settings=ServerSettings(max_body_bytes=10))
    attach_engine_app(stack.app, app_that_waits())
    async with full_of_bodies(stack):
        return await Client(stack.app).post("/tokenize", b"1")


async def refused_by_a_full_queue() -> Answer:
    stack, inner = make_stack(), FastAPI()

    @inner.get("/v1/models", status_code=503)
    async def refuse() -> None:
        pass

    attach_engine_app(stack.app, inner)
    return await Client(stack.app).get("/v1/models")


async def cut_before_the_first_token() -> Answer:
    stack, inner = make_stack(), FastAPI()

    @inner.post("/generate")
    async def begin() -> StreamingResponse:
        async def nothing() -> AsyncIterator[str]:
            await asyncio.Event().wait()
            yield ""

        return StreamingResponse(nothing(), media_type="text/event-stream")

    attach_engine_app(stack.app, inner)
    asking = asyncio.ensure_future(Client(stack.app).post("/generate", {}))
    while stack.in_flight.count == 0:
        await asyncio.wait((asking,), timeout=0)
    await asyncio.wait((asking,), timeout=0.05)
    await stack.in_flight.cut_all(ENGINE_FAILED)
    return await asking


@pytest.mark.parametrize(
    "refused",
    [
        refused_while_loading,
        refused_in_a_drain,
        refused_after_a_failure,
        refused_without_room_for_the_body,
        refused_by_a_full_queue,
        cut_before_the_first_token,
    ],
)
async def test_a_refusal_that_concerns_this_replica_sends_a_router_to_another(
    refused: Callable[[], Awaitable[Answer]],
) -> None:
    answer = await refused()
    assert (answer.status, answer.headers[RETRY_HEADER]) == (503, "other-replica")
    assert int(answer.headers["retry-after"]) > 0


async def test_a_refusal_that_is_the_same_on_every_replica_sends_nobody_to_another(
    tmp_path: Path,
) -> None:
    (tmp_path / "key").write_text("secret")
    settings = ServerSettings(max_body_bytes=10, request_timeout_seconds=0.05)
    stack, of_keys = make_stack(settings=settings), make_stack(keys=ApiKeys(tmp_path))
    attach_engine_app(stack.app, app_that_waits())
    answers = [
        await Client(stack.app).get("/nothing"),
        await Client(of_keys.app).get("/v1/models"),
        await Client(stack.app).post("/generate", b"12345678901"),
        await Client(stack.app).request("POST", "/generate", b"{", {"content-length": "99"}),
        await Client(stack.app).post("/generate", b"1"),
    ]
    assert [each.status for each in answers] == [404, 401, 413, 413, 504]
    assert not any(RETRY_HEADER in each.headers for each in answers)


async def test_a_stream_that_has_begun_is_cut_without_an_offer_to_try_again() -> None:
    stack, inner = make_stack(), FastAPI()

    @inner.post("/generate")
    async def begin() -> StreamingResponse:
        async def one() -> AsyncIterator[str]:
            yield "data: {}\n\n"
            await asyncio.Event().wait()

        return StreamingResponse(one(), media_type="text/event-stream")

    attach_engine_app(stack.app, inner)
    client = Client(stack.app)
    asking = asyncio.ensure_future(client.post("/generate", {}))
    await client.answered.wait()
    await stack.in_flight.cut_all(ENGINE_FAILED)
    answer = await asking
    assert answer.status == 200
    assert RETRY_HEADER not in answer.headers
    assert json.loads(answer.body.split(b"data: ")[-1])["error"]["code"] == 503


@dataclass
class Asked:
    """A request to create a response, as vLLM parses it."""

    store: bool
    request_id: str = "resp_1"


@pytest.mark.parametrize(
    ("asked", "status", "header"),
    [
        (Asked(store=True), 200, "resp_1"),
        (Asked(store=True, request_id="chosen-by_2"), 200, "chosen-by_2"),
        (Asked(store=False), 200, None),
        (Asked(store=True), 400, None),
        (Asked(store=True, request_id="a\r\nset-cookie: b"), 200, None),
        (Asked(store=True, request_id="a" * 129), 200, None),
        (Asked(store=True, request_id=""), 200, None),
    ],
)
async def test_a_stored_response_is_named_in_a_header_if_its_id_has_the_usual_form(
    asked: Asked, status: int, header: str | None
) -> None:
    class Responses:
        async def create_responses(self, request: Asked, raw_request: Request) -> int:
            return status

    stack, inner, responses = make_stack(), FastAPI(), Responses()
    note_stored_responses(responses)

    @inner.post("/v1/responses")
    async def create(raw_request: Request) -> Response:
        return Response(status_code=await responses.create_responses(asked, raw_request))

    attach_engine_app(stack.app, inner)
    answer = await Client(stack.app).post("/v1/responses", {})
    assert (answer.status, answer.headers.get(STORED_HEADER)) == (status, header)
    assert "set-cookie" not in answer.headers

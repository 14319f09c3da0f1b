"""The forwarder between a client and a stand-in for Envoy's second listener."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from llmservice_operator.names import HELD_HEADER
from router_support.forwarding import (
    COMMENT,
    answer_400,
    answer_events,
    answer_events_and_die,
    answer_half_and_die,
    forwarder,
)
from router_support.whole_pod import CHAT, DONE, PLAIN, STREAM
from shared_support.waiting import eventually_in_loop


async def test_a_request_and_its_answer_pass_unchanged(tmp_path: Path) -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        headers = [("x-a", "1"), ("x-a", "2"), ("content-encoding", "gzip"), ("keep-alive", "9")]
        response = web.Response(status=207, reason="Several", body=b"\x1f\x8b\x00")
        response.headers.extend(headers)
        return response

    async with forwarder(tmp_path) as bench:
        bench.envoy.handler = answer
        sent = {
            "host": "chat.example",
            "x-multi": "a",
            "connection": "x-of-this-hop",
            "x-of-this-hop": "1",
            "x-long": "v" * 30_000,
            "content-encoding": "deflate",
            "user-agent": "test",
            HELD_HEADER: "2500",
        }
        body = bytes(range(256)) * 300
        url = "/v1/files/a%2Fb?q=%20x&y=%C3%A4"
        async with bench.client.put(url, data=body, headers=sent) as answered:
            assert (answered.status, answered.reason) == (207, "Several")
            assert answered.headers.getall("x-a") == ["1", "2"]
            assert answered.headers["content-encoding"] == "gzip"
            assert "keep-alive" not in answered.headers
            assert await answered.read() == b"\x1f\x8b\x00"
        ((request, received),) = bench.envoy.requests
    assert (request.method, request.raw_path, received) == ("PUT", url, body)
    assert {name: request.headers[name] for name in ("host", "x-multi", "x-long")} == {
        name: sent[name] for name in ("host", "x-multi", "x-long")
    }
    assert request.headers["content-encoding"] == "deflate"
    assert request.headers["user-agent"] == "test"
    assert "x-of-this-hop" not in request.headers
    assert 2500 <= int(request.headers[HELD_HEADER]) < 60_000


async def test_a_stream_gets_comments_and_then_its_answer(tmp_path: Path) -> None:
    async with forwarder(tmp_path) as bench:
        headers = {HELD_HEADER: "1000", "x-request-id": "id-1"}
        async with bench.client.post(CHAT, json=STREAM, headers=headers) as answer:
            assert answer.status == 200
            assert answer.content_type == "text/event-stream"
            assert answer.headers["x-request-id"] == "id-1"
            # The picker held the request for one heartbeat, so the first comment comes immediately.
            assert await answer.content.readuntil(b"\n\n") == COMMENT
            await eventually_in_loop(lambda: bench.envoy.tries > 1)
            bench.envoy.handler = answer_events
            events = await answer.content.read()
        ((request, body),) = bench.envoy.requests
    assert events.replace(COMMENT, b"") == b'data: {"token": 1}\n\n' + DONE
    assert json.loads(body) == STREAM
    assert int(request.headers[HELD_HEADER]) > 1000


@pytest.mark.parametrize(
    "body",
    [
        PLAIN,
        {"prompt": 'say "stream": true'},
        {"tools": [{"stream": True}]},
        [{"stream": True}],
        {"stream": False},
    ],
)
async def test_a_request_without_a_stream_gets_no_comment(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    async with forwarder(tmp_path) as bench:
        posted = asyncio.ensure_future(
            bench.client.post(CHAT, json=body, headers={HELD_HEADER: "9000"})
        )
        await bench.hold(1)
        await eventually_in_loop(lambda: bench.envoy.tries > 2)
        assert not posted.done()
        bench.envoy.handler = answer_400
        async with await posted as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["message"] == "the prompt is too long"


async def test_the_deadline_gives_503_with_retry_after(tmp_path: Path) -> None:
    async with (
        forwarder(tmp_path, hold_timeout_seconds=1) as bench,
        bench.client.post(CHAT, json=PLAIN) as answer,
    ):
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        message = (await answer.json())["error"]["message"]
    assert message == "no replica became available in time; send the request again later"


ROUTES = {
    CHAT: 'data: {"error": {"message": ',
    "/v1/messages": 'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"',
    "/v1/responses": 'event: error\ndata: {"type": "error", "sequence_number": 0, "code": "503"',
}


@pytest.mark.parametrize("route", ROUTES)
async def test_the_deadline_of_a_stream_gives_the_error_event_of_its_api(
    tmp_path: Path, route: str
) -> None:
    async with (
        forwarder(tmp_path, hold_timeout_seconds=3) as bench,
        bench.client.post(route, json=STREAM, headers={HELD_HEADER: "2000"}) as answer,
    ):
        assert answer.status == 200
        *comments, event, end = (await answer.text()).split("\n\n")
    assert [*comments] == [COMMENT.decode().strip()] * len(comments)
    assert comments
    assert end == ""
    assert event.startswith(ROUTES[route])
    assert "no replica became available in time" in event


async def test_an_error_of_the_replica_after_a_comment_is_an_event(tmp_path: Path) -> None:
    async with (
        forwarder(tmp_path) as bench,
        bench.client.post(CHAT, json=STREAM, headers={HELD_HEADER: "1000"}) as answer,
    ):
        assert await answer.content.readuntil(b"\n\n") == COMMENT
        bench.envoy.handler = answer_400
        events = (await answer.content.read()).replace(COMMENT, b"")
    error = json.loads(events.removeprefix(b"data: "))["error"]
    assert (error["message"], error["code"]) == ("the prompt is too long", 400)


async def test_a_replica_that_ends_in_its_stream_gives_an_error_event(tmp_path: Path) -> None:
    async with forwarder(tmp_path) as bench:
        bench.envoy.handler = answer_events_and_die
        async with bench.client.post(CHAT, json=STREAM) as answer:
            begun, event, end = (await answer.text()).split("\n\n")
    assert (begun, end) == ('data: {"tok', "")
    assert "the replica ended in the middle of its answer" in event


async def test_a_replica_that_ends_in_another_answer_cuts_it(tmp_path: Path) -> None:
    async with forwarder(tmp_path) as bench:
        bench.envoy.handler = answer_half_and_die
        async with bench.client.post(CHAT, json=PLAIN) as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()


async def test_a_client_that_leaves_is_freed(tmp_path: Path) -> None:
    async with forwarder(tmp_path) as bench:
        posts = [
            asyncio.ensure_future(bench.client.post(CHAT, json=body)) for body in (PLAIN, STREAM)
        ]
        await bench.hold(2)
        for post in posts:
            post.cancel()
        await bench.hold(0)
        assert 'forwarded_requests_total{result="client_left"} 2.0' in await bench.metrics()


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_more_requests_and_bytes_than_the_limits_are_refused(
    tmp_path: Path, is_chunked: bool
) -> None:
    async def post(size: int) -> tuple[int, str | None, str]:
        data = pieces(b"x" * (size - 1), b"y") if is_chunked else b"x" * size
        async with bench.client.post(CHAT, data=data) as answer:
            message = (await answer.json())["error"]["message"]
            return answer.status, answer.headers.get("retry-after"), message

    full = ("no replica is available, and too many requests wait already; send it again later",)
    async with forwarder(
        tmp_path, max_held_requests=2, max_held_bytes=1000, max_body_bytes=800
    ) as bench:
        assert await post(801) == (
            413, None, "the body is larger than 800 bytes; send a shorter one"
        )  # fmt: skip
        first = asyncio.ensure_future(post(600))
        await bench.hold(1)
        assert await post(401) == (503, "5", *full)
        second = asyncio.ensure_future(post(400))
        await bench.hold(2)
        assert await post(1) == (503, "5", *full)
        bench.envoy.handler = answer_400
        assert {(await first)[0], (await second)[0]} == {400}
        assert await bench.waiting() == 0
        assert await post(800) == (400, None, "the prompt is too long")

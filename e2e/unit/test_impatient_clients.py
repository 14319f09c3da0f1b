"""Tests how the clients of the routing tests judge the end of an answer."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from impatient_clients import PLAIN_TOKENS, Ending, ImpatientClients, Outcome, summary
from shared_support.waiting import eventually

TOKEN = b'data: {"choices": [{"text": "a"}]}\n\n'
ERROR = b'data: {"error": {"message": "the replica ended", "code": 502}}\n\n'
DONE = b"data: [DONE]\n\n"

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def outcomes_of(answer: Answer) -> list[Outcome]:
    """Return the first outcomes of two clients, of which the first one asks for streams."""
    server = web.Server(answer, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    clients = ImpatientClients(f"http://{host}:{port}", "chat", "key", clients=2)

    def run() -> None:
        with clients:
            eventually(clients.go_on(1), every=0.02)

    await asyncio.to_thread(run)
    await runner.cleanup()
    return [next(it for it in clients.outcomes if it.is_stream is kind) for kind in (True, False)]


def sending(*events: bytes, then_abort: bool = False) -> Answer:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        if then_abort and request.transport is not None:
            request.transport.abort()
        return response

    return answer


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        pytest.param(sending(b": wait\n\n", TOKEN, DONE), Ending.ANSWERED, id="whole"),
        pytest.param(sending(TOKEN, ERROR), Ending.CUT, id="error event after a token"),
        pytest.param(sending(TOKEN, then_abort=True), Ending.CUT, id="abort after a token"),
        pytest.param(sending(b": wait\n\n", ERROR), Ending.REFUSED, id="error event at first"),
        pytest.param(sending(TOKEN), Ending.SILENTLY_CUT, id="end without an error"),
    ],
)
async def test_the_end_of_a_stream(answer: Answer, ending: Ending) -> None:
    stream = (await outcomes_of(answer))[0]
    assert stream.is_stream
    assert stream.ending is ending, stream


async def lose(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def refuse(_: web.BaseRequest) -> web.StreamResponse:
    return web.json_response({"error": {"code": 503}}, status=503)


async def complete(request: web.BaseRequest) -> web.StreamResponse:
    assert request.headers["Authorization"] == "Bearer key"
    assert "sea" in json.loads(await request.read())["prompt"]
    return web.json_response({"usage": {"completion_tokens": PLAIN_TOKENS}})


async def shorten(_: web.BaseRequest) -> web.StreamResponse:
    return web.json_response({"usage": {"completion_tokens": PLAIN_TOKENS - 1}})


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        (complete, Ending.ANSWERED),
        (shorten, Ending.SILENTLY_CUT),
        (refuse, Ending.REFUSED),
        (lose, Ending.LOST),
    ],
)
async def test_the_end_of_a_plain_request(answer: Answer, ending: Ending) -> None:
    plain = (await outcomes_of(answer))[-1]
    assert not plain.is_stream
    assert plain.ending is ending, plain
    assert f"1 {ending}" in summary([plain])

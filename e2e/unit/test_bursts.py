"""Tests the bursts of requests, and the proxy that closes silent connections."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from bursts import Burst, half_streams
from impatient_clients import PLAIN_TOKENS, Ending
from impatient_proxy import ImpatientProxy
from shared_support.waiting import eventually

TOKEN = b'data: {"choices": [{"text": "a"}]}\n\n'
DONE = b"data: [DONE]\n\n"
SILENCE_SECONDS = 1.0
"""Time in seconds after which the proxy closes a silent connection."""

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(answer: Answer) -> AsyncIterator[tuple[str, int]]:
    """Serve at a port of this machine. Yield the host and the port."""
    server = web.Server(answer, access_log=None, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][:2]
    await runner.cleanup()


async def begin_stream(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    return response


def is_stream(body: bytes) -> bool:
    return b'"stream": true' in body


async def complete(body: bytes, request: web.BaseRequest) -> web.StreamResponse:
    if not is_stream(body):
        return web.json_response({"usage": {"completion_tokens": PLAIN_TOKENS}})
    response = await begin_stream(request)
    for event in (b": wait\n\n", b": wait\n\n", TOKEN, DONE):
        await response.write(event)
    return response


async def test_a_client_repeats_exactly_the_requests_whose_connection_ended() -> None:
    refused = set[str]()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        kind = "stream" if is_stream(body) else "plain"
        if kind not in refused:
            refused.add(kind)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return await complete(body, request)

    async with served(answer) as (host, port):
        burst = Burst("chat", "key", half_streams(f"http://{host}:{port}", 6), repeats=True)

        def run() -> None:
            with burst:
                eventually(lambda: burst.repeated, every=0.02)

        await asyncio.to_thread(run)
    assert burst.unanswered() == []
    assert burst.repeated == 2
    assert burst.fewest_comments() == 2
    firsts = [tries[0].ending for tries in burst.tries]
    assert sorted(firsts) == sorted([Ending.LOST] * 2 + [Ending.ANSWERED] * 4)


async def test_a_request_that_is_not_repeated_counts_as_unanswered() -> None:
    async def refuse(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=503, headers={"Retry-After": "5"})

    async with served(refuse) as (host, port):
        burst = Burst("chat", "key", half_streams(f"http://{host}:{port}", 2), repeats=True)

        def run() -> None:
            with burst:
                pass

        await asyncio.to_thread(run)
    assert len(burst.unanswered()) == 2
    assert burst.repeated == 0
    assert {each.retry_after for each in burst.last} == {"5"}


async def test_requests_are_cancelled_if_the_block_fails() -> None:
    async def wait(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    async with served(wait) as (host, port):
        burst = Burst("chat", "key", half_streams(f"http://{host}:{port}", 2))

        def run() -> None:
            with burst:
                raise LookupError("of the test")

        with pytest.raises(LookupError, match="of the test"):
            await asyncio.to_thread(run)


async def test_the_proxy_closes_silent_connections_and_no_others() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        """Comment on a stream for twice the limit, and leave another request without a byte."""
        body = await request.read()
        if not is_stream(body):
            await asyncio.Event().wait()
        response = await begin_stream(request)
        waits = asyncio.Event()
        for _ in range(10):
            await response.write(b": wait\n\n")
            await asyncio.wait([asyncio.ensure_future(waits.wait())], timeout=SILENCE_SECONDS / 5)
        waits.set()
        await response.write(TOKEN + DONE)
        return response

    async with served(answer) as (host, port):

        def run() -> list[Ending]:
            with ImpatientProxy(host, port, SILENCE_SECONDS) as proxy:
                burst = Burst("chat", "key", [(proxy.url, False), (proxy.url, True)])
                with burst:
                    eventually(lambda: proxy.closed, every=0.02)
            assert proxy.closed == 1
            return [each.ending for each in burst.last]

        assert await asyncio.to_thread(run) == [Ending.LOST, Ending.ANSWERED]

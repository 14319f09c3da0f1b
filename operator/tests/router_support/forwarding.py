"""The forwarder between a client and a stand-in for Envoy's second listener."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from llmservice_operator.router.envoy_names import FORWARDED_SOCKET, NO_REPLICA_HEADER
from llmservice_operator.router.forwarder import METRICS_SOCKET, Forwarder
from router_support.whole_pod import DONE, settings_of_pod, until

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
COMMENT = b": waiting for a replica\n\n"


@dataclass
class Envoy:
    """Envoy's second listener: it has no replica until `handler` is set."""

    handler: Handler | None = None
    requests: list[tuple[web.BaseRequest, bytes]] = field(default_factory=list)
    tries: int = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.tries += 1
        body = await request.read()
        if self.handler is None:
            return web.Response(status=503, headers={NO_REPLICA_HEADER: "1"})
        self.requests.append((request, body))
        return await self.handler(request)


@dataclass
class Bench:
    """A forwarder, its client, and its Envoy."""

    envoy: Envoy
    client: aiohttp.ClientSession
    folder: Path

    async def metrics(self) -> str:
        connector = aiohttp.UnixConnector(str(self.folder / METRICS_SOCKET))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://forwarder/metrics") as answer,
        ):
            return await answer.text()

    async def waiting(self) -> int:
        lines = (await self.metrics()).splitlines()
        name = "llmservice_router_forwarder_waiting_requests "
        return int(float(next(it for it in lines if it.startswith(name)).removeprefix(name)))

    async def hold(self, number: int) -> None:
        """Wait until this number of requests is held."""

        async def is_so() -> bool:
            return await self.waiting() == number

        await until(is_so)


@asynccontextmanager
async def forwarder(folder: Path, **settings: Any) -> AsyncIterator[Bench]:
    envoy = Envoy()
    configured = settings_of_pod(folder, **settings)
    server = web.Server(
        envoy.answer, access_log=None, auto_decompress=False, max_field_size=64 * 1024
    )
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    await web.UnixSite(runner, str(folder / FORWARDED_SOCKET)).start()
    url = f"http://127.0.0.1:{configured.forwarder_port}"
    try:
        async with (
            Forwarder(configured).serving(),
            aiohttp.ClientSession(url, auto_decompress=False) as client,
        ):
            yield Bench(envoy, client, folder)
    finally:
        await runner.cleanup()


async def answer_events(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'data: {"token": 1}\n\n')
    await response.write(DONE)
    return response


async def answer_events_and_die(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'data: {"tok')
    await asyncio.sleep(0.1)
    assert request.transport is not None
    request.transport.close()
    return response


async def answer_half_and_die(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": "100"})
    await response.prepare(request)
    await response.write(b"half")
    assert request.transport is not None
    request.transport.close()
    return response


async def answer_400(_: web.BaseRequest) -> web.StreamResponse:
    return web.json_response({"error": {"message": "the prompt is too long"}}, status=400)

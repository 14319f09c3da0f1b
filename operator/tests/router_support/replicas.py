"""Replicas that answer after fixed times, each at a loopback address of its own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from llmservice_operator.names import IDENTITY_PATH, OTHER_REPLICA, RETRY_HEADER

SECONDS = 0.02
"""Time in seconds until the first token."""

Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class FakeReplica:
    """A model server without a model."""

    name: str
    host: str
    api_port: int
    management_port: int
    identity: str
    behaviour: Behaviour | None = None
    """Answer to the requests of clients; None streams a few chunks."""
    chunks: int = 3
    chunk_seconds: float = 0.01
    seen: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    _runners: list[web.AppRunner] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.api_port

    async def start(self) -> None:
        await self._serve(self._answer, self.api_port)
        await self._serve(self._identify, self.management_port)

    async def stop(self) -> None:
        """Stop immediately, and close every connection."""
        for runner in self._runners:
            if runner.server is not None:
                for connection in list(runner.server.connections):
                    if connection.transport is not None:
                        connection.transport.abort()
            await runner.cleanup()
        self._runners.clear()

    async def _serve(self, handler: Behaviour, port: int) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, self.host, port).start()
        self._runners.append(runner)

    async def _identify(self, request: web.Request) -> web.StreamResponse:
        assert request.path == IDENTITY_PATH
        return web.Response(headers={"x-envoy-upstream-healthchecked-cluster": self.identity})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        if self.behaviour is not None:
            return await self.behaviour(request)
        self.bodies.append(await request.read())
        await asyncio.sleep(SECONDS)
        return await self.stream(request)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"x-replica": self.name, "content-type": "text/event-stream"}
        )
        await response.prepare(request)
        for _ in range(self.chunks):
            await response.write(b"data: {}\n\n")
            await asyncio.sleep(self.chunk_seconds)
        return response


async def answer_not_me(request: web.Request) -> web.StreamResponse:
    await request.read()
    return web.Response(status=503, headers={RETRY_HEADER: OTHER_REPLICA})


async def die(request: web.Request) -> web.StreamResponse:
    """Close the connection after the request has arrived."""
    await request.read()
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def end_in_the_middle(request: web.Request) -> web.StreamResponse:
    """Close the connection after the first chunk of the answer."""
    await request.read()
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"data: {}\n\n")
    await asyncio.sleep(0.05)
    assert request.transport is not None
    request.transport.abort()
    return response


@asynccontextmanager
async def running(*replicas: FakeReplica) -> AsyncIterator[None]:
    for replica in replicas:
        await replica.start()
    try:
        yield
    finally:
        for replica in replicas:
            await replica.stop()

"""Tests that a request to the API server times out if the response, its body or the login hangs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from llmservice_operator.cluster import Cluster, client
from llmservice_operator.errors import ClusterError
from llmservice_operator.kinds import DEPLOYMENTS

LIMIT_SECONDS = 0.3


class Observer:
    def request_finished(self, method: str, host: str, code: str, seconds: float) -> None:
        """Count nothing."""


async def hang(*_: Any) -> Any:
    await asyncio.Event().wait()


async def trickle(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.02)  # noqa: TID251 - a slow server is the point


async def refuse(_: web.Request) -> web.StreamResponse:
    return web.json_response({"message": "Unauthorized"}, status=401)


@asynccontextmanager
async def connected(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[tuple[Cluster, Configuration]]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as running:
        configuration = Configuration(host=str(running.make_url("")).rstrip("/"))
        cluster = Cluster(ApiClient(configuration), Observer())
        yield cluster, configuration
        await cluster.close()


@pytest.fixture(autouse=True)
def _short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REQUEST_TIMEOUT_SECONDS", LIMIT_SECONDS)


async def read(cluster: Cluster) -> None:
    async with asyncio.timeout(10 * LIMIT_SECONDS):
        with pytest.raises(ClusterError, match="no answer"):
            await cluster.read(DEPLOYMENTS, "team", "llama")


@pytest.mark.parametrize("answer", [hang, trickle])
async def test_a_request_to_a_server_that_hangs_times_out(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> None:
    async with connected(answer) as (cluster, _):
        await read(cluster)


async def test_a_login_that_hangs_times_out() -> None:
    async with connected(refuse) as (cluster, configuration):
        configuration.refresh_api_key_hook = hang
        configuration.api_key["BearerToken"] = "token"
        await read(cluster)


async def test_a_new_login_that_hangs_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "load_configuration", hang)
    async with connected(refuse) as (cluster, _):
        await read(cluster)

"""Requests about stored responses go to the replica that has stored them."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from llmservice_operator.names import STORED_HEADER
from router_support.pod import Pod, replicas_of, settings_of
from router_support.replicas import Behaviour, FakeReplica, answer_not_me, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESPONSES = "/v1/responses"
KEY = "key-of-a-client"


def store(name: str) -> Behaviour:
    """Return the behaviour of a replica that stores each new response."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {"x-replica": name}
        if request.path == RESPONSES:
            headers[STORED_HEADER] = json.loads(body)["request_id"]
        return web.Response(headers=headers)

    return answer


@dataclass
class Bench:
    pod: Pod
    replicas: list[FakeReplica]
    client: aiohttp.ClientSession

    async def send(self, method: str, path: str, **options: Any) -> str:
        """Send a request, and return the name of the replica that answers."""
        async with self.client.request(method, path, **options) as answer:
            assert answer.status == 200, await answer.text()
            return answer.headers["x-replica"]

    async def create(self, identifier: str, **more: Any) -> str:
        body = {"request_id": identifier, "input": "hi", **more}
        return await self.send("POST", RESPONSES, json=body)

    async def asked_about(self, identifier: str) -> set[str]:
        """Return the replicas that answer requests about a response, on all routes."""
        path = f"{RESPONSES}/{identifier}"
        continued = {"request_id": "next", "previous_response_id": identifier}
        return {
            await self.send("GET", path),
            await self.send("GET", f"{path}?stream=true&starting_after=3"),
            await self.send("POST", f"{path}/cancel"),
            await self.send("POST", f"{path}/cancel", json={}),
            await self.send("POST", RESPONSES, json=continued),
            await self.send("POST", RESPONSES, json=continued | {"input": "x" * 100_000}),
        }


@pytest_asyncio.fixture(loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder, keys = tmp_path_factory.mktemp("pod"), tmp_path_factory.mktemp("keys")
    (keys / "first").write_text(KEY)
    pod = Pod(settings_of(folder, api_keys_directory=keys))
    replicas = replicas_of(3)
    headers = {"Authorization": f"Bearer {KEY}"}
    for each in replicas:
        each.behaviour = store(each.name)
    pod.start()
    try:
        async with running(*replicas), aiohttp.ClientSession(pod.url, headers=headers) as client:
            await pod.tell(replicas)
            await pod.ready(replicas)
            yield Bench(pod, replicas, client)
    finally:
        pod.stop()


async def test_every_request_about_a_response_reaches_the_replica_that_stored_it(
    bench: Bench,
) -> None:
    first, second, _ = bench.replicas
    assert await bench.create("resp_1") == first.name
    # The retry of a refused request stores the response elsewhere than chosen.
    first.behaviour = answer_not_me
    assert await bench.create("resp_2") == second.name
    first.behaviour = store(first.name)
    await bench.pod.tell(bench.replicas)
    assert await bench.asked_about("resp_2") == {second.name}
    assert await bench.asked_about("resp_1") == {first.name}
    # An ordinary request is not affected.
    assert await bench.send("POST", "/v1/chat/completions", json={}) == first.name

    # A response that nobody has stored may be asked for anywhere.
    assert await bench.asked_about("resp_3") <= {each.name for each in bench.replicas}

    # The responses of a replica that drains or has ended are lost.
    await bench.pod.tell([first, *bench.replicas[2:]])
    assert second.name not in await bench.asked_about("resp_2")


async def test_a_request_about_a_stored_response_needs_a_key(bench: Bench) -> None:
    assert await bench.create("resp_1") == bench.replicas[0].name
    seen = sum(len(each.seen) for each in bench.replicas)
    for method, path in (("GET", "resp_1"), ("POST", "resp_1/cancel")):
        async with bench.client.request(
            method, f"{RESPONSES}/{path}", headers={"Authorization": "Bearer wrong"}
        ) as answer:
            assert answer.status == 401
    assert sum(len(each.seen) for each in bench.replicas) == seen

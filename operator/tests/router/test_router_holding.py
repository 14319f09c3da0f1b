"""Requests that wait for a replica, for a grant of bytes, or for the forwarder."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from llmservice_operator.names import HELD_HEADER
from llmservice_operator.router.envoy_names import SEEN_BODY_BYTES
from llmservice_operator.router.grants import GRANTED_BYTES, MAX_WAITING
from router_support.pod import Pod, replicas_of, settings_of
from router_support.replicas import FakeReplica, running
from shared_support.waiting import eventually_in_loop

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
MAX_HELD = 3


@dataclass
class Bench:
    pod: Pod
    replica: FakeReplica
    forwarder: FakeReplica
    client: aiohttp.ClientSession

    async def post(self, **body: Any) -> tuple[int, str, str]:
        """Send a request. Return the status, the replica and the body of the response."""
        async with self.client.post(CHAT, json=body) as response:
            return response.status, response.headers.get("x-replica", ""), await response.text()

    @property
    def calls(self) -> int:
        return self.pod.stat("cluster.pickers.upstream_rq_active")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    settings = settings_of(
        tmp_path_factory.mktemp("pod"),
        hold_timeout_seconds=3,
        heartbeat_seconds=1,
        max_held_requests=MAX_HELD,
    )
    pod = Pod(settings)
    (replica,) = replicas_of(1)
    forwarder = FakeReplica("forwarder", "127.0.0.1", settings.forwarder_port, 0, "")
    pod.start()
    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            running(replica, forwarder),
            aiohttp.ClientSession(pod.url, connector=connector) as client,
        ):
            await pod.tell([])
            await pod.ready([])
            yield Bench(pod, replica, forwarder, client)
    finally:
        pod.stop()


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def fresh(bench: Bench) -> AsyncIterator[None]:
    yield
    await bench.pod.tell([])
    await bench.pod.ready([])
    await eventually_in_loop(lambda: bench.calls == 0)


async def test_a_request_is_held_until_a_replica_appears(bench: Bench) -> None:
    held = asyncio.ensure_future(bench.post(prompt="a"))
    await eventually_in_loop(lambda: bench.calls == 1)
    assert not (await asyncio.wait({held}, timeout=0.5))[0]
    await bench.pod.tell([bench.replica])
    assert (await held)[:2] == (200, bench.replica.name)
    assert 500 <= int(bench.replica.seen[-1].headers[HELD_HEADER]) < 3000


async def test_a_request_is_refused_when_its_time_to_wait_is_over(bench: Bench) -> None:
    started = time.monotonic()
    status, _, text = await bench.post(prompt="a")
    assert status == 503
    assert "no replica became available in time" in text
    assert 2.9 < time.monotonic() - started < 6


async def test_a_stream_goes_to_the_forwarder_after_the_time_of_a_heartbeat(bench: Bench) -> None:
    started = time.monotonic()
    assert (await bench.post(prompt="a", stream=True))[:2] == (200, "forwarder")
    assert 0.9 < time.monotonic() - started < 2.9


async def test_no_more_requests_are_held_than_the_limit(bench: Bench) -> None:
    held = [asyncio.ensure_future(bench.post(prompt="a")) for _ in range(MAX_HELD)]
    await eventually_in_loop(lambda: bench.calls == MAX_HELD)
    status, _, text = await bench.post(prompt="a")
    assert status == 503
    assert "too many requests wait already" in text
    await bench.pod.tell([bench.replica])
    assert {(await each)[0] for each in held} == {200}


async def test_a_client_that_leaves_frees_its_place(bench: Bench) -> None:
    for _ in range(2):
        held = [asyncio.ensure_future(bench.post(prompt="a")) for _ in range(MAX_HELD)]
        await eventually_in_loop(lambda: bench.calls == MAX_HELD)
        for each in held:
            each.cancel()
        await eventually_in_loop(lambda: bench.calls == 0)
    kept = asyncio.ensure_future(bench.post(prompt="a"))
    await eventually_in_loop(lambda: bench.calls == 1)
    await bench.pod.tell([bench.replica])
    assert (await kept)[0] == 200


async def test_a_probe_is_never_held(bench: Bench) -> None:
    async with bench.client.get("/health") as response:
        assert response.status == 503


async def test_bytes_above_the_grants_are_refused_while_small_requests_pass(bench: Bench) -> None:
    await bench.pod.tell([bench.replica])
    await bench.pod.ready([bench.replica])
    granted = GRANTED_BYTES // SEEN_BODY_BYTES
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: {2 * SEEN_BODY_BYTES}\r\n\r\n"
    uploads = [
        await asyncio.open_connection("127.0.0.1", bench.pod.settings.client_port)
        for _ in range(granted + MAX_WAITING + 4)
    ]
    try:
        for _, writer in uploads:
            writer.write(head.encode() + b" ")
        reading = [asyncio.ensure_future(reader.read(4096)) for reader, _ in uploads]
        refused: set[asyncio.Future[bytes]] = set()
        while len(refused) < 4:
            refused, _ = await asyncio.wait(reading, timeout=0.1)
        assert len(refused) == 4
        for each in refused:
            assert b" 503 " in each.result()
            assert b"too many request bodies arrive at the same time" in each.result()
        assert (await bench.post(prompt="a"))[0] == 200
    finally:
        for _, writer in uploads:
            writer.close()
        await asyncio.gather(*reading, return_exceptions=True)

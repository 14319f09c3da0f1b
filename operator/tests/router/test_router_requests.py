"""Requests through Envoy and a picker to replicas that answer after fixed times."""

import asyncio
import contextlib
import io
import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from llmservice_operator.names import HELD_HEADER
from llmservice_operator.router.chooser import Chooser
from llmservice_operator.router.envoy_names import OWN_HEADERS, SEEN_BODY_BYTES
from llmservice_operator.router.following import Following
from llmservice_operator.router.replica_view import ReplicaView
from llmservice_operator.routing.answers import source_of
from llmservice_operator.routing.holding import Holding
from llmservice_operator.routing.router import Router
from operator_support.replica_reports import MODEL
from router_support.pod import NAMESPACE, SERVICE, Pod, replicas_of, settings_of, snapshot
from router_support.replicas import FakeReplica, running
from server_support.hostile_bytes import RAW, SECRET, Raw
from shared_support.waiting import eventually_in_loop

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "key-of-a-client"
CHAT = "/v1/chat/completions"
MAX_BODY = 4 * 1024**2


@dataclass
class Bench:
    pod: Pod
    replicas: list[FakeReplica]
    client: aiohttp.ClientSession

    async def raw(self, *parts: bytes, patience: float = 10) -> bytes:
        """Send bytes. Return what arrives until the connection ends or `patience` is over."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.pod.settings.client_port)
        received = bytearray()

        async def receive() -> None:
            with contextlib.suppress(ConnectionError):
                while more := await reader.read(65536):
                    received.extend(more)

        receiving = asyncio.ensure_future(receive())
        with contextlib.suppress(ConnectionError, TimeoutError):
            for part in parts:
                if received or receiving.done():
                    break
                writer.write(part)
                await writer.drain()
        await asyncio.wait({receiving}, timeout=patience)
        receiving.cancel()
        writer.close()
        return bytes(received)

    @property
    def seen(self) -> int:
        return sum(len(each.seen) for each in self.replicas)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("pod")
    keys = tmp_path_factory.mktemp("keys")
    (keys / "first").write_text(KEY)
    pod = Pod(settings_of(folder, api_keys_directory=keys, max_body_bytes=MAX_BODY))
    replicas = replicas_of(2)
    headers = {"Authorization": f"Bearer {KEY}"}
    pod.start()
    try:
        async with (
            running(*replicas),
            aiohttp.ClientSession(pod.url, headers=headers) as client,
        ):
            await pod.tell(replicas)
            await pod.ready(replicas)
            yield Bench(pod, replicas, client)
    finally:
        pod.stop()


async def served(bench: Bench, **options: Any) -> str:
    """Send a request, and return the name of its replica."""
    async with bench.client.post(CHAT, **options) as response:
        assert response.status == 200, await response.text()
        await response.read()
        return response.headers["x-replica"]


async def test_a_request_counts_at_its_replica_until_its_answer_ends(bench: Bench) -> None:
    first, second = bench.replicas
    first.chunks, first.chunk_seconds = 30, 0.1
    async with bench.client.post(CHAT, json={"stream": True}) as long:
        assert long.headers["x-replica"] == first.name
        first.chunks, first.chunk_seconds = 3, 0.01
        for _ in range(5):
            assert await served(bench, json={}) == second.name
        await long.read()
    await eventually_in_loop(lambda: bench.pod.stat("cluster.pickers.upstream_rq_active") == 0, 5)
    assert await served(bench, json={}) == first.name


async def test_the_lengths_of_streams_are_learned_for_the_key_and_the_path(bench: Bench) -> None:
    path = "/v1/completions"
    source = source_of(sha256(KEY.encode()).hexdigest(), path)
    chooser = Chooser(Holding(Router(MODEL)))
    chooser.update([ReplicaView(each.name, each.host, False, None, 1e6) for each in bench.replicas])
    following = Following(chooser, f"{NAMESPACE}/{SERVICE}")
    bench.pod.tell_pickers(bench.replicas, others=["127.0.0.1:9"])
    following.update([f"127.0.0.1:{bench.pod.settings.picker_port}"])
    try:
        await eventually_in_loop(lambda: following.is_ready)
        async with bench.client.post(f"{path}?query=1", json={"stream": True}) as response:
            await response.read()
        await eventually_in_loop(lambda: source in dict(chooser.router.answers.evidence()))
    finally:
        await following.close()
        bench.pod.tell_pickers(bench.replicas)


async def test_headers_of_the_proxy_in_a_clients_request_are_void(bench: Bench) -> None:
    hostile = {
        "x-gateway-destination-endpoint": "127.0.0.1:1",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-max-retries": "50",
        "x-envoy-original-path": "/other",
        HELD_HEADER: "1000000000",
        f"{OWN_HEADERS}forwarded": "1",
    }
    await served(bench, json={}, headers=hostile)
    for each in bench.replicas:
        if each.seen:
            seen = {name.lower(): value for name, value in each.seen[-1].headers.items()}
            # A forwarder that stands in for a slow picker sends its own time.
            assert int(seen.pop(HELD_HEADER, "0")) < 1_000_000
            assert not seen.keys() & hostile.keys()


async def test_a_header_with_an_underscore_is_refused(bench: Bench) -> None:
    async with bench.client.post(CHAT, json={}, headers={"x_envoy_max_retries": "5"}) as response:
        assert response.status == 400


@pytest.mark.parametrize("size", [10, MAX_BODY], ids=["small", "large"])
async def test_a_request_without_a_key_is_refused_before_its_body_is_read(
    bench: Bench, size: int
) -> None:
    before, read_before = bench.seen, bench.pod.stat("http.clients.downstream_cx_rx_bytes_total")
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    piece = b" " * min(size, 65536)
    answer = await bench.raw(head.encode(), *[piece] * (size // len(piece)))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"www-authenticate: Bearer" in answer
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert "Authorization: Bearer KEY" in error["message"]
    read = bench.pod.stat("http.clients.downstream_cx_rx_bytes_total") - read_before
    assert read < SEEN_BODY_BYTES + 256 * 1024
    assert bench.seen == before


async def test_a_body_above_the_limit_is_refused_before_a_byte_of_it(bench: Bench) -> None:
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Length: {MAX_BODY + 1}\r\n\r\n"
    )
    answer = await bench.raw(head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert (
        f"larger than {MAX_BODY} bytes"
        in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    )


async def test_chunks_above_the_limit_are_refused(bench: Bench) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(2 * MAX_BODY // 65536):
            yield b" " * 65536

    try:
        async with bench.client.post(CHAT, data=chunks()) as response:
            assert response.status == 413
    except aiohttp.ClientConnectionError:
        pass  # the router closed the connection while the client still sent data


async def test_long_bodies_arrive_whole(bench: Bench) -> None:
    beyond = [SEEN_BODY_BYTES + more for more in (-1, 0, 1, 1, 100, 100, 8000, 8000, 20_000)]
    for size in (*beyond, MAX_BODY):
        body = random.randbytes(size)
        name = await served(bench, data=io.BytesIO(body))
        replica = next(each for each in bench.replicas if each.name == name)
        assert replica.bodies[-1] == body


async def test_hostile_bytes_reach_no_replica_and_no_log(bench: Bench) -> None:
    before, chance = bench.seen, random.Random(7)

    async def attack(kind: Raw) -> None:
        answer = await bench.raw(*kind(chance, f"Bearer {KEY}".encode()), patience=0.5)
        for line in answer.split(b"\r\n"):
            assert not line.startswith(b"HTTP/1.1 5"), (kind, answer[:300])
        assert b"X-Injected" not in answer.split(b"\r\n\r\n")[0]

    for _ in range(6):
        await asyncio.gather(*map(attack, RAW))
    seen = [(each.method, each.path) for replica in bench.replicas for each in replica.seen]
    assert ("GET", "/pause") not in seen
    assert len(seen) > before
    assert SECRET not in bench.pod.log


async def test_no_prompt_key_or_query_is_in_a_log(bench: Bench) -> None:
    marks = ("a-secret-prompt", "a-secret-query", "a-wrong-key")
    await served(bench, json={"prompt": marks[0]}, params={"q": marks[1]})
    for headers in ({"Authorization": f"Bearer {marks[2]}"}, {"x_bad": marks[2]}):
        async with bench.client.post(
            CHAT, json={"prompt": marks[0]}, params={"q": marks[1]}, headers=headers
        ) as response:
            assert response.status in (400, 401)
    async with bench.client.post(
        CHAT, data=io.BytesIO(b"a-secret-prompt" * 400_000), params={"q": marks[1]}
    ) as response:
        assert response.status == 413
    assert not [mark for mark in (*marks, KEY) if mark in bench.pod.log]


async def test_parsing_a_long_prompt_delays_no_other_request(bench: Bench) -> None:
    long = json.dumps({"messages": [{"role": "user", "content": "a word " * 149_000}]}).encode()
    delays = []

    async def small() -> None:
        started = time.perf_counter()
        async with bench.client.get("/v1/models") as response:
            await response.read()
        delays.append(time.perf_counter() - started)

    await small()
    alone = delays.pop()
    sending = asyncio.ensure_future(served(bench, data=io.BytesIO(long)))
    while not sending.done():
        await small()
    print(f"slowest small request: {max(delays, default=0):.3f} s; alone {alone:.3f} s")
    await sending


@pytest.mark.parametrize("size", [10, 100_000], ids=["one exchange", "two exchanges"])
async def test_the_choice_of_the_picker_is_met(bench: Bench, size: int) -> None:
    for busy, idle in (bench.replicas, bench.replicas[::-1]):
        reports = {idle.name: snapshot(), busy.name: snapshot(running=200, kv_tokens=9e5)}
        await bench.pod.tell(
            bench.replicas, reports=[reports[each.name] for each in bench.replicas]
        )
        names = [
            await served(bench, json={"prompt": random.randbytes(size).hex()}) for _ in range(20)
        ]
        assert names == [idle.name] * 20

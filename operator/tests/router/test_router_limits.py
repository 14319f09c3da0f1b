"""Limits of API keys, through Envoy and pickers."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from llmservice_operator.router.chooser import Chooser
from llmservice_operator.router.following import Following
from llmservice_operator.router.picker_status import read_status
from llmservice_operator.router_settings import ClientLimits, LimitsOfClients
from llmservice_operator.routing.holding import Holding
from llmservice_operator.routing.limits import Limiter, Limits
from llmservice_operator.routing.router import Router
from operator_support.replica_reports import MODEL
from router_support.pod import NAMESPACE, SERVICE, Pod, replicas_of, settings_of, snapshot
from router_support.replicas import FakeReplica, running
from router_support.whole_pod import until
from shared_support.scrape import metric_of
from shared_support.waiting import eventually_in_loop

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
NONE = ClientLimits()


@dataclass
class Bench:
    pod: Pod
    replica: FakeReplica
    client: aiohttp.ClientSession

    async def post(self, key: str, **body: Any) -> tuple[int, Mapping[str, str], Any]:
        """Send a request. Return the status, the headers and the body of the response."""
        headers = {"Authorization": f"Bearer key-of-{key}"}
        async with self.client.post(CHAT, json=body, headers=headers) as response:
            is_refused = response.status == 429
            content = await (response.json() if is_refused else response.read())
            return response.status, response.headers, content

    async def metrics(self) -> dict[str, float]:
        return {
            " ".join([sample.name, *sample.labels.values()]): sample.value
            for family in text_string_to_metric_families(
                (await read_status(self.pod.folder)).metrics
            )
            for sample in family.samples
        }

    async def wait_until_idle(self) -> None:
        """Wait until the pickers have seen the ends of all requests."""
        await eventually_in_loop(lambda: self.pod.stat("cluster.pickers.upstream_rq_active") == 0)


@asynccontextmanager
async def bench_of(folder: Path, pickers: int = 1, **limits: ClientLimits) -> AsyncIterator[Bench]:
    """Run a pod whose keys have these limits."""
    keys = folder / "keys"
    keys.mkdir()
    for name in limits:
        (keys / name).write_text(f"key-of-{name}")
    run = folder / "run"
    run.mkdir()
    settings = settings_of(run, api_keys_directory=keys, client_limits=LimitsOfClients(keys=limits))
    pod, (replica,) = Pod(settings, pickers), replicas_of(1)
    pod.start()
    try:
        async with (
            running(replica),
            aiohttp.ClientSession(pod.url, connector=aiohttp.TCPConnector(limit=0)) as client,
        ):
            await pod.tell([replica], reports=[snapshot()], key_tokens={})
            await pod.ready([replica])
            yield Bench(pod, replica, client)
    finally:
        pod.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with bench_of(
        tmp_path_factory.mktemp("pod"),
        few=ClientLimits(requests=3),
        short=ClientLimits(tokens=1000),
        one=ClientLimits(concurrent=1),
        free=NONE,
    ) as made:
        yield made


async def test_requests_above_the_limit_of_their_key_get_429_until_a_minute_has_passed(
    bench: Bench,
) -> None:
    remaining = []
    for _ in range(3):
        status, headers, _ = await bench.post("few")
        assert (status, headers["x-ratelimit-limit-requests"]) == (200, "3")
        remaining.append(headers["x-ratelimit-remaining-requests"])
    assert remaining == ["2", "1", "0"]
    seen = len(bench.replica.seen)
    status, headers, content = await bench.post("few")
    assert status == 429
    assert content["error"]["type"] == "TooManyRequestsError"
    assert "3 requests per minute" in content["error"]["message"]
    assert 50 <= int(headers["retry-after"]) <= 61
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"].endswith("s")
    assert len(bench.replica.seen) == seen
    status, headers, _ = await bench.post("free")
    assert status == 200
    assert not [name for name in headers if name.lower().startswith("x-ratelimit")]


async def test_a_long_body_above_the_limit_is_refused_before_it_is_read(bench: Bench) -> None:
    while (await bench.post("few"))[0] == 200:
        pass
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.pod.settings.client_port)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer key-of-few\r\n"
    writer.write(f"{head}Content-Length: 900000\r\n\r\n{{".encode())
    async with asyncio.timeout(10):
        assert b" 429 " in await reader.readline()
    writer.close()


async def test_tokens_are_reserved_until_the_replica_has_counted_them(bench: Bench) -> None:
    status, headers, _ = await bench.post("short", max_tokens=900)
    assert (status, headers["x-ratelimit-remaining-tokens"]) == (200, "100")
    status, headers, _ = await bench.post("short", max_tokens=900)
    assert status == 429
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    status, headers, content = await bench.post("short", max_tokens=5000)
    assert (status, headers["x-should-retry"]) == (429, "false")
    assert "lower max_tokens" in content["error"]["message"]
    await bench.wait_until_idle()

    async def admitted() -> bool:
        tokens = {"short": 12}
        bench.pod.tell_pickers([bench.replica], reports=[snapshot()], key_tokens=tokens)
        return (await bench.post("short", max_tokens=900))[0] == 200

    await until(admitted)


async def test_requests_in_progress_are_limited_until_they_end(bench: Bench) -> None:
    bench.replica.chunks, bench.replica.chunk_seconds = 1000, 0.02
    try:
        headers = {"Authorization": "Bearer key-of-one"}
        async with bench.client.post(CHAT, json={"stream": True}, headers=headers) as long:
            assert long.status == 200, long.headers
            status, answer, _ = await bench.post("one")
            assert (status, answer["retry-after"]) == (429, "1")
    finally:
        bench.replica.chunks, bench.replica.chunk_seconds = 3, 0.01

    async def admitted() -> bool:
        return (await bench.post("one"))[0] == 200

    await until(admitted)


async def test_the_metrics_name_the_keys_and_their_limits(bench: Bench) -> None:
    found = await bench.metrics()
    assert found["llmservice_router_key_requests_total few"] == 3
    assert found["llmservice_router_key_limited_total few requests"] >= 1
    assert found["llmservice_router_requests_total rate_limited"] >= 1


async def knows_used(bench: Bench, at: int, requests: int) -> None:
    """Wait until a picker of the pod knows how many requests the client `few` has used."""
    limiter = Limiter(Limits(requests=100))
    chooser = Chooser(Holding(Router(MODEL)), limiter=limiter)
    bench.pod.tell_pickers([bench.replica], others=["127.0.0.1:9"])
    following = Following(chooser, f"{NAMESPACE}/{SERVICE}")
    following.update([f"127.0.0.1:{bench.pod.picker_ports[at]}"])

    def used() -> int:
        return 100 - limiter.standing("few", chooser.clock())["requests"].remaining

    try:
        await eventually_in_loop(lambda: used() == requests)
    finally:
        await following.close()


async def test_the_next_picker_knows_what_was_used_and_without_pickers_nothing_is_limited(
    tmp_path: Path,
) -> None:
    async with bench_of(tmp_path, pickers=2, few=ClientLimits(requests=3)) as bench:
        for _ in range(2):
            assert (await bench.post("few"))[0] == 200
        await knows_used(bench, at=1, requests=2)
        bench.pod.pickers_running[0].kill()
        passed = [(await bench.post("few"))[0] for _ in range(3)]
        assert passed == [200, 429, 429]
        bench.pod.pickers_running[1].kill()
        bench.pod.pickers_running[1].wait()
        assert [(await bench.post("few"))[0] for _ in range(3)] == [200] * 3
        metrics = bench.pod.admin("/stats/prometheus?usedonly")
        # The alert queries this.
        counter = "envoy_http_ext_proc_failure_mode_allowed"
        assert metric_of(metrics, counter, envoy_http_conn_manager_prefix="clients") >= 3

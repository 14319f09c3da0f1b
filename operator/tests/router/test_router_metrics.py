"""The metrics of the picker, after requests through Envoy."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from llmservice_operator.router.picker_status import read_status
from router_support.pod import Pod, replicas_of, settings_of, snapshot
from router_support.replicas import FakeReplica, answer_not_me, die, running
from router_support.whole_pod import CHAT, PLAIN, ServedReplica, addresses, router_pod, until
from shared_support.metric_table import differences

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "key-of-a-client"


@dataclass
class Bench:
    pod: Pod
    replicas: list[FakeReplica]
    client: aiohttp.ClientSession
    before: dict[str, float]

    async def read(self) -> dict[str, float]:
        text = (await read_status(self.pod.folder)).metrics
        return {
            " ".join([sample.name, *sample.labels.values()]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def grown(self) -> dict[str, float]:
        """Return the increase of the metrics since the start of the test."""
        found = await self.read()
        return {
            name.removeprefix("llmservice_router_"): value - self.before.get(name, 0)
            for name, value in found.items()
            if value != self.before.get(name, 0)
        }

    async def show(self, name: str, value: float) -> None:
        """Wait until a metric has grown by this value."""

        async def is_shown() -> bool:
            return (await self.grown()).get(name, 0) == value

        await until(is_shown, within=10)

    async def post(self, body: dict[str, Any], **options: Any) -> int:
        async with self.client.post(CHAT, json=body, **options) as answer:
            await answer.read()
            return answer.status


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder, keys = tmp_path_factory.mktemp("pod"), tmp_path_factory.mktemp("keys")
    (keys / "first").write_text(KEY)
    # Without a forwarder process, a held stream must stay in the picker.
    pod = Pod(settings_of(folder, api_keys_directory=keys, heartbeat_seconds=60))
    replicas = replicas_of(2)
    headers = {"Authorization": f"Bearer {KEY}"}
    pod.start()
    try:
        async with running(*replicas), aiohttp.ClientSession(pod.url, headers=headers) as client:
            await pod.tell(replicas)
            await pod.ready(replicas)
            yield Bench(pod, replicas, client, {})
    finally:
        pod.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def bench(started: Bench) -> Bench:
    for each in started.replicas:
        each.behaviour = None
    await started.pod.tell(started.replicas, reports=[snapshot(), snapshot()])
    return replace(started, before=await started.read())


async def test_requests_are_counted_by_outcome_and_picks_by_reason(bench: Bench) -> None:
    assert await bench.post({"prompt": "hi"}) == 200
    assert await bench.post({"prompt": "hi"}, headers={"Authorization": "Bearer wrong"}) == 401
    await bench.show("requests_total sent", 1)
    await bench.show("requests_total no_key", 1)
    await bench.show("picks_total least_work", 1)


async def test_a_stream_has_an_expected_and_a_real_time_to_its_first_token(bench: Bench) -> None:
    assert await bench.post({"prompt": "hi"}) == 200
    assert await bench.post({"prompt": "hi", "stream": True}) == 200
    await bench.show("first_token_seconds_count", 1)
    grown = await bench.grown()
    assert grown["expected_first_token_seconds_count"] == 1
    # The replica begins its answer after 0.02 s.
    assert 0.02 <= grown["first_token_seconds_sum"] < 5
    error = abs(grown["first_token_seconds_sum"] - grown["expected_first_token_seconds_sum"])
    assert grown["first_token_error_seconds_sum"] == pytest.approx(error)


async def test_a_repeated_prompt_counts_as_saved(bench: Bench) -> None:
    text = f"{time.monotonic()} " + "word " * 4000
    assert await bench.post({"prompt": text}) == 200
    await bench.show("requests_total sent", 1)
    first = await bench.grown()
    assert first["prompt_tokens_total"] > 3000
    assert first.get("cached_prompt_tokens_total", 0) == 0
    assert await bench.post({"prompt": text}) == 200
    await bench.show("requests_total sent", 2)
    second = await bench.grown()
    assert second["cached_prompt_tokens_total"] > 0.45 * second["prompt_tokens_total"]


async def test_retries_and_refused_requests_are_counted(bench: Bench) -> None:
    first, second = bench.replicas
    first.behaviour = answer_not_me
    assert await bench.post({"prompt": "retried"}) == 200
    await bench.show("retries_total", 1)
    first.behaviour = second.behaviour = die
    await bench.pod.tell(bench.replicas, reports=[snapshot(), snapshot()])
    body = {"prompt": f"deadly at {time.monotonic()}"}
    assert await bench.post(body) == 502
    await bench.show("digests_refused_total", 1)
    await bench.show("refused_digests", 1)
    assert await bench.post(body) == 502
    await bench.show("requests_total refused_digest", 1)
    (refused,) = (await read_status(bench.pod.folder)).report.refused_requests
    assert 590 < refused.seconds_left <= 600
    assert refused.digest in bench.pod.log


async def test_a_held_request_is_shown_while_it_waits_and_its_time_afterwards(
    bench: Bench,
) -> None:
    await bench.pod.tell([])
    before = (await read_status(bench.pod.folder)).report.hold_counts
    posted = asyncio.ensure_future(bench.post({"prompt": "held"}))
    await bench.show("held_requests", 1)
    report = (await read_status(bench.pod.folder)).report
    assert report.held_requests == 1
    assert before is not None
    assert report.hold_counts == before.model_copy(update={"arrived": before.arrived + 1})
    await bench.pod.tell(bench.replicas, reports=[snapshot(), snapshot()])
    assert await posted == 200
    await bench.show("held_seconds_count", 1)
    grown = await bench.grown()
    assert (grown["picks_total held"], grown.get("held_requests", 0)) == (1, 0)
    assert grown["held_seconds_sum"] > 0


async def test_a_client_that_leaves_while_it_waits_is_counted(bench: Bench) -> None:
    await bench.pod.tell([])
    posted = asyncio.ensure_future(bench.post({"prompt": "left"}))
    await bench.show("held_requests", 1)
    posted.cancel()
    await asyncio.wait([posted])
    await bench.show("requests_total client_left", 1)
    await bench.show("held_requests", 0)


@pytest.mark.asyncio(loop_scope="function")
async def test_a_pod_serves_the_metrics_of_all_its_processes_as_one_valid_text(
    tmp_path: Any,
) -> None:
    (address,) = addresses(1)
    replica = ServedReplica(address, "chat-1")
    async with router_pod(tmp_path, replica) as pod:
        async with pod.client.post(CHAT, json=PLAIN) as answer:
            assert answer.status == 200
        await replica.stop()
        await pod.knows()
        text = await pod.metrics()
    families = [each.name for each in text_string_to_metric_families(text)]
    assert len(set(families)) == len(families)
    assert differences(text, "Router pod") == []
    assert 'llmservice_router_picks_total{reason="least_work"} 1.0' in text
    assert "llmservice_router_ejections_total 1.0" in text
    for name in ("envoy_cluster_health_check_failure", "envoy_cluster_upstream_rq"):
        assert any(each.startswith(name) for each in families), name
    # Alerts and dashboards query these.
    clients = 'envoy_http_conn_manager_prefix="clients"'
    assert f"envoy_http_downstream_rq_total{{{clients}}} 1" in text
    classes = f'envoy_response_code_class="2",{clients}'
    assert f"envoy_http_downstream_rq_xx{{{classes}}} 1" in text

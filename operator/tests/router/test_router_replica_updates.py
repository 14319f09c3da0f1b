"""Which lists of replicas a router pod takes, and their effect."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from llmservice_operator.api.router_messages import MOST_REPLICAS, ReplicaList, RouterReport
from llmservice_operator.engine_metrics import EngineMetrics
from llmservice_operator.metrics_server.router_updates import RouterClient
from llmservice_operator.names import ROUTER_HELD_PATH, ROUTER_REPLICAS_PATH
from llmservice_operator.router import replica_updates as module
from llmservice_operator.router.picker_status import PickerStatus, serve_held, serve_status
from llmservice_operator.router.replica_updates import REFUSAL_SECONDS, ReplicaUpdates
from llmservice_operator.router.replicas import KNOWN_SECONDS, Replicas
from llmservice_operator.telemetry import start_server
from router_support.clock import Clock
from router_support.whole_pod import (
    CHAT,
    DONE,
    NAMESPACE,
    PLAIN,
    SERVICE,
    STREAM,
    Names,
    RouterPod,
    ServedReplica,
    addresses,
    client_of,
    router_pod,
    settings_of_pod,
    until,
)
from shared_support.waiting import eventually_in_loop

OWN_ADDRESS = "127.0.0.1"
"""Address from which the tests send lists."""
WATCHED = RouterReport(can_be_watched=True)


@dataclass
class Bench:
    replicas: Replicas
    updates: ReplicaUpdates
    names: Names
    clock: Clock
    url: str

    async def held(self, wait: str) -> tuple[int, RouterReport]:
        """Ask for the next held request. Return the status and the report."""
        url = self.url.replace(ROUTER_REPLICAS_PATH, ROUTER_HELD_PATH)
        async with (
            aiohttp.ClientSession() as client,
            client.get(url, params={"wait": wait}) as answer,
        ):
            text = await answer.text()
            is_ok = answer.status == 200
            return answer.status, RouterReport.model_validate_json(text if is_ok else "{}")

    async def put(self, body: str | AsyncIterator[bytes]) -> int:
        data = BytesIO(body.encode()) if isinstance(body, str) else body
        async with (
            aiohttp.ClientSession() as client,
            client.put(self.url, data=data) as answer,
        ):
            return answer.status


@asynccontextmanager
async def taking(folder: Path, *metrics_servers: str, **settings: Any) -> AsyncIterator[Bench]:
    configured = settings_of_pod(folder, **settings)
    clock, names = Clock(), Names(metrics_servers=list(metrics_servers))
    metrics = EngineMetrics(now=clock)
    replicas = Replicas(configured, metrics, names.resolve, clock)
    updates = ReplicaUpdates(configured, replicas, names.resolve, clock)
    app = web.Application()
    updates.add_to(app)
    server = await start_server(app, configured.management_port)
    running = asyncio.create_task(updates.run())
    url = f"http://127.0.0.1:{configured.management_port}{ROUTER_REPLICAS_PATH}"
    try:
        yield Bench(replicas, updates, names, clock, url)
    finally:
        running.cancel()
        await asyncio.wait([running])
        await server.cleanup()
        await metrics.close()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SENDERS_PERIOD_SECONDS", 0.02)
    monkeypatch.setattr(module, "ARRIVAL_SECONDS", 0.2)


def entry(address: str, pod: str, **changes: Any) -> dict[str, Any]:
    ready = {"isReady": True, "isDraining": False}
    return {"name": pod, "uid": f"uid-of-{pod}", "address": address, **ready, **changes}


def list_of(*replicas: dict[str, Any], **changes: Any) -> str:
    whole = {"namespace": NAMESPACE, "service": SERVICE, "replicas": replicas, **changes}
    return json.dumps(whole)


async def test_a_list_of_a_metrics_server_adds_its_addresses(tmp_path: Path) -> None:
    async with taking(tmp_path, OWN_ADDRESS) as bench:
        await eventually_in_loop(lambda: bench.updates.knows(OWN_ADDRESS))
        listed = list_of(entry("10.0.0.1", "chat-1"), entry("fd00::1", "chat-2", isReady=False))
        assert await bench.put(listed) == 200
        assert bench.replicas.candidates == 2
        assert (bench.updates.accepted, bench.updates.refused) == (1, 0)


@pytest.mark.parametrize(
    ("metrics_servers", "settings"),
    [((), {}), (("127.0.0.9",), {}), ((OWN_ADDRESS,), {"metrics_servers_host": None})],
)
async def test_a_list_from_another_address_is_refused(
    tmp_path: Path, metrics_servers: tuple[str, ...], settings: dict[str, Any]
) -> None:
    async with taking(tmp_path, *metrics_servers, **settings) as bench:
        await eventually_in_loop(
            lambda: bench.updates.knows("127.0.0.9") or not metrics_servers or settings
        )
        assert await bench.put(list_of(entry("10.0.0.1", "chat-1"))) == 403
        assert (bench.replicas.candidates, bench.updates.refused) == (0, 1)


async def test_a_metrics_server_is_known_for_a_minute_after_dns_named_it(tmp_path: Path) -> None:
    async with taking(tmp_path, OWN_ADDRESS) as bench:
        await eventually_in_loop(lambda: bench.updates.knows(OWN_ADDRESS))
        bench.names.fails = True
        bench.clock.now += KNOWN_SECONDS - 1
        assert await bench.put(list_of()) == 200
        bench.clock.now += 2
        assert await bench.put(list_of()) == 403


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (list_of(namespace="team-b"), 403),
        (list_of(service="chat-2"), 403),
        ("", 400),
        ("[]", 400),
        (list_of(entry("chat-1.example", "chat-1")), 400),
        (list_of(entry("10.0.0.1", "")), 400),
        (list_of(*[entry("10.0.0.1", "chat-1")] * (MOST_REPLICAS + 1)), 400),
        (" " * 2**21, 413),
    ],
    ids=["namespace", "service", "nothing", "no list", "host", "no name", "many", "long"],
)
async def test_a_list_about_another_service_or_without_bounds_is_refused(
    tmp_path: Path, body: str, status: int
) -> None:
    async with taking(tmp_path, OWN_ADDRESS) as bench:
        await eventually_in_loop(lambda: bench.updates.knows(OWN_ADDRESS))
        assert await bench.put(body) == status
        assert (bench.replicas.candidates, bench.updates.accepted) == (0, 0)


async def test_a_list_that_arrives_too_slowly_is_refused(tmp_path: Path) -> None:
    async with taking(tmp_path, OWN_ADDRESS) as bench:
        await eventually_in_loop(lambda: bench.updates.knows(OWN_ADDRESS))

        async def body() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.Event().wait()

        assert await bench.put(body()) == 408


async def test_a_metrics_server_learns_of_the_next_held_request_at_once(tmp_path: Path) -> None:
    held, report = asyncio.Event(), RouterReport(held_requests=3, can_be_watched=True)
    async with taking(tmp_path, OWN_ADDRESS) as bench:
        await eventually_in_loop(lambda: bench.updates.knows(OWN_ADDRESS))
        assert await bench.held("0") == (200, WATCHED)
        asked = [asyncio.ensure_future(bench.held("600")) for _ in range(2)]
        servers = [
            await serve_held(held.wait, tmp_path),
            await serve_status(lambda: PickerStatus(report=report), tmp_path),
        ]
        try:
            await eventually_in_loop(lambda: bench.updates.watches == 2)
            assert not any(each.done() for each in asked)
            held.set()
            assert await asyncio.gather(*asked) == [(200, report)] * 2
            await eventually_in_loop(lambda: bench.updates.watches == 0)
        finally:
            for each in servers:
                each.close()


async def test_questions_for_held_requests_are_bounded_and_only_for_metrics_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with taking(tmp_path, "127.0.0.9") as bench:
        assert (await bench.held("1"))[0] == 403
    monkeypatch.setattr(module, "MOST_WATCHES", 1)
    monkeypatch.setattr(module, "LEFT_SECONDS", 0.02)
    async with taking(tmp_path, OWN_ADDRESS) as bench:
        await eventually_in_loop(lambda: bench.updates.knows(OWN_ADDRESS))
        assert (await bench.held("long"))[0] == 400
        waiting = asyncio.ensure_future(bench.held("600"))
        await eventually_in_loop(lambda: bench.updates.watches == 1)
        assert (await bench.held("600"))[0] == 503
        # A metrics server that has left frees its place.
        waiting.cancel()
        await eventually_in_loop(lambda: bench.updates.watches == 0)


async def test_a_pod_that_ends_answers_the_questions_for_held_requests(tmp_path: Path) -> None:
    async with taking(tmp_path, OWN_ADDRESS) as bench:
        await eventually_in_loop(lambda: bench.updates.knows(OWN_ADDRESS))
        waiting = asyncio.ensure_future(bench.held("600"))
        await eventually_in_loop(lambda: bench.updates.watches == 1)
    assert await waiting == (200, WATCHED)


async def test_a_refusal_is_forgotten_when_no_metrics_server_repeats_it(tmp_path: Path) -> None:
    async with taking(tmp_path, OWN_ADDRESS) as bench:
        await eventually_in_loop(lambda: bench.updates.knows(OWN_ADDRESS))
        bench.replicas.changed.clear()
        assert await bench.put(list_of(refusal="the service is suspended")) == 200
        assert bench.updates.refusal == "the service is suspended"
        assert bench.replicas.changed.is_set()
        bench.clock.now += REFUSAL_SECONDS
        assert bench.updates.refusal is None
        await eventually_in_loop(lambda: bench.updates.knows(OWN_ADDRESS))
        assert await bench.put(list_of(refusal="the service is suspended")) == 200
        assert await bench.put(list_of()) == 200
        assert bench.updates.refusal is None


async def told(pod: RouterPod, client: RouterClient, *replicas: dict[str, Any]) -> None:
    """Send a list until the pod knows the address of the tests."""
    listed = ReplicaList.model_validate_json(list_of(*replicas))

    async def is_accepted() -> bool:
        return await client.send(OWN_ADDRESS, listed) is not None

    await until(is_accepted)


async def test_the_answer_to_a_list_names_the_requests_that_the_picker_refuses(
    tmp_path: Path,
) -> None:
    body = ReplicaList.model_validate_json(list_of())
    replicas = [ServedReplica(each, f"chat-{each}", dies=True) for each in addresses(2)]
    async with router_pod(tmp_path, *replicas) as pod, client_of(pod) as client:
        await told(pod, client)
        before = await client.send(OWN_ADDRESS, body)
        assert before is not None
        assert before.refused_requests == ()
        assert before.can_be_watched
        async with pod.client.post(CHAT, json=PLAIN) as answer:
            assert answer.status == 502
        report = await client.send(OWN_ADDRESS, body)
    assert report is not None
    (refused,) = report.refused_requests
    assert refused.seconds_left > 500


async def test_a_pod_learns_of_new_and_ending_replicas_before_dns_and_the_replicas_say_so(
    tmp_path: Path,
) -> None:
    first, second = (
        ServedReplica(address, f"chat-{number}")
        for number, address in enumerate(addresses(2), start=1)
    )
    await second.start()
    loop = asyncio.get_running_loop()
    async with router_pod(tmp_path, first) as pod, client_of(pod) as client:
        await told(pod, client, entry(first.address, first.pod))
        began = loop.time()
        await told(pod, client, entry(first.address, first.pod), entry(second.address, second.pod))
        await pod.knows(first, second)
        print(f"a new replica gets requests after {loop.time() - began:.2f} s")
        first.first_token = asyncio.Event()

        async def stream() -> bytes:
            async with pod.client.post(CHAT, json=STREAM) as answer:
                return await answer.read()

        streams = [asyncio.ensure_future(stream()) for _ in range(4)]
        await eventually_in_loop(lambda: first.active > 0)
        ending = entry(first.address, first.pod, isReady=False, isDraining=True)
        await told(pod, client, ending, entry(second.address, second.pod))
        asked = first.questions
        await pod.knows(second)
        before = len(first.requests)
        for _ in range(20):
            async with pod.client.post(CHAT, json=PLAIN) as answer:
                assert (answer.status, await answer.json()) == (200, {"replica": "chat-2"})
        assert len(first.requests) == before
        # A list of the other metrics server may be older, and the replica itself has not begun.
        await told(pod, client, entry(first.address, first.pod))
        await eventually_in_loop(lambda: first.questions > asked + 1)
        assert [each.is_draining for each in pod.supervisor.replicas.views()] == [True, False]
        first.first_token.set()
        for events in await asyncio.gather(*streams):
            assert events.endswith(DONE)
        text = await pod.metrics()
        assert 'llmservice_router_replica_lists_total{result="accepted"} ' in text
        # Another pod may get the address later.
        await first.stop()
        successor = ServedReplica(first.address, "chat-3")
        await successor.start()
        try:
            await pod.knows(second, successor)
        finally:
            await successor.stop()
    await second.stop()

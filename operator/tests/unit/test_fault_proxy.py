"""Tests that each fault of the proxy has the intended effect on the operator's client."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from llmservice_operator.children import CHILDREN
from llmservice_operator.cluster import Cluster
from llmservice_operator.errors import ClusterError, Conflict
from llmservice_operator.kinds import DEPLOYMENTS
from operator_support.fault_flows import children_of, specs_with_every_child
from operator_support.fault_proxy import GONE, Answer, Cut, Drop, Fault, FaultProxy, Stall
from operator_support.fault_proxy import fault_proxy as running_proxy
from shared_support.waiting import eventually_in_loop

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "llama", "namespace": "team", "resourceVersion": "7"},
    "spec": {"replicas": 1},
}
WATCHED = f"{DEPLOYMENTS.path('team')}?watch=true"


def event(name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "team", "resourceVersion": name}
    return {"type": "MODIFIED", "object": {"kind": "Deployment", "metadata": metadata}}


class ApiServer:
    """Serves one Deployment, and a watch with two changes of it."""

    def __init__(self) -> None:
        self.writes = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Content-Type") == "application/octet-stream":
            return web.json_response({"message": "Unsupported Media Type"}, status=415)
        if "watch" in request.query:
            if "quiet" in request.query:
                response = web.StreamResponse()
                await response.prepare(request)
                await asyncio.Event().wait()
            lines = [json.dumps(event(name)).encode() + b"\n" for name in ("1", "2")]
            return web.Response(body=b"".join(lines))
        if request.method == "PATCH":
            assert yaml.safe_load(await request.text())["kind"] == "Deployment"
            self.writes += 1
        if request.path == DEPLOYMENTS.path("team"):
            return web.json_response({"metadata": {}, "items": [DEPLOYMENT]})
        return web.json_response(DEPLOYMENT)


class Observer:
    def request_finished(self, method: str, host: str, code: str, seconds: float) -> None:
        """Count nothing."""


@pytest.fixture
def server() -> ApiServer:
    return ApiServer()


@pytest.fixture
async def proxy(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[FaultProxy]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    async with TestServer(app) as running:
        direct = tmp_path / "direct.conf"
        cluster = {"name": "c", "cluster": {"server": str(running.make_url(""))}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        users = [{"name": "u", "user": {"token": "token"}}]
        whole = {"current-context": "c", "contexts": [context], "clusters": [cluster]}
        direct.write_text(json.dumps({**whole, "users": users}))
        monkeypatch.setenv("KUBECONFIG", str(direct))
        with running_proxy() as proxy:
            monkeypatch.setenv("KUBECONFIG", proxy.kubeconfig(tmp_path))
            yield proxy


@pytest.fixture
async def cluster(proxy: FaultProxy) -> AsyncIterator[Cluster]:
    cluster = await Cluster.connect(Observer(), "replica-a")
    yield cluster
    await cluster.close()


async def test_without_a_fault_the_proxy_changes_nothing_and_records_the_client(
    cluster: Cluster, proxy: FaultProxy, server: ApiServer
) -> None:
    assert await cluster.read(DEPLOYMENTS, "team", "llama") == DEPLOYMENT
    assert await cluster.apply(DEPLOYMENT) == DEPLOYMENT
    assert server.writes == 1
    assert [(each.method, each.status) for each in proxy.seen] == [("GET", 200), ("PATCH", 200)]
    assert all("replica-a" in each.agent for each in proxy.seen)
    assert [each.method for each in proxy.writes()] == ["PATCH"]


@pytest.mark.parametrize(
    ("fault", "reaches", "said"),
    [
        (Answer.failure(409, "it has been modified"), 0, "409: it has been modified"),
        (Answer.failure(503, "overloaded"), 0, "503: overloaded"),
        (Answer.page(), 0, "not one of the API server"),
        (Drop(), 0, "no answer"),
        (Drop(is_forwarded=True), 1, "no answer"),
        (Cut(10), 1, "no answer"),
    ],
)
async def test_a_faulty_answer_is_an_error_whether_or_not_the_api_server_got_the_write(
    cluster: Cluster, proxy: FaultProxy, server: ApiServer, fault: Fault, reaches: int, said: str
) -> None:
    proxy.faults.on_request = lambda _: fault
    with pytest.raises(ClusterError, match=said) as caught:
        await cluster.apply(DEPLOYMENT)
    assert server.writes == reaches
    assert isinstance(caught.value, Conflict) == (said[:3] == "409")
    proxy.faults.clear()
    assert await cluster.apply(DEPLOYMENT) == DEPLOYMENT


async def test_the_wait_that_a_response_demands_reaches_the_client(
    cluster: Cluster, proxy: FaultProxy
) -> None:
    proxy.faults.on_request = lambda _: Answer.failure(429, "too many", Retry_After="3")
    with pytest.raises(ClusterError) as caught:
        await cluster.read(DEPLOYMENTS, "team", "llama")
    assert caught.value.retry_after_seconds == 3


async def test_a_stalled_request_gets_no_answer(proxy: FaultProxy, server: ApiServer) -> None:
    proxy.faults.on_request = lambda _: Stall()
    limit = aiohttp.ClientTimeout(total=0.3)
    async with aiohttp.ClientSession(timeout=limit) as session:
        with pytest.raises(TimeoutError):
            await session.patch(proxy.address + DEPLOYMENTS.path("team", "llama"), data=b"{}")
    assert server.writes == 0


async def test_a_delay_holds_an_answer_back_and_a_crash_hook_runs_around_the_write(
    cluster: Cluster, proxy: FaultProxy, server: ApiServer
) -> None:
    order: list[tuple[str, int]] = []
    proxy.faults.delay_seconds = lambda _: 0.2
    proxy.faults.before = lambda _: order.append(("before", server.writes))
    proxy.faults.after = lambda _: order.append(("after", server.writes))
    loop = asyncio.get_running_loop()
    started = loop.time()
    await cluster.apply(DEPLOYMENT)
    assert loop.time() - started >= 0.2
    assert order == [("before", 0), ("after", 1)]


async def test_a_list_request_can_get_an_earlier_list(cluster: Cluster, proxy: FaultProxy) -> None:
    proxy.faults.on_list = lambda _, found: {**found, "items": []}
    assert [each async for each in cluster.list_all(DEPLOYMENTS, "team")] == []
    proxy.faults.clear()
    assert len([each async for each in cluster.list_all(DEPLOYMENTS, "team")]) == 1


async def test_a_request_without_a_body_gets_no_content_type(proxy: FaultProxy) -> None:
    url = proxy.address + DEPLOYMENTS.path("team", "llama")
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert await answer.json() == DEPLOYMENT


async def events_through(proxy: FaultProxy) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(proxy.address + WATCHED) as answer:
        return [json.loads(line) for line in (await answer.read()).splitlines()]


async def test_a_watch_gets_other_events_or_ends_with_the_given_ones(proxy: FaultProxy) -> None:
    assert await events_through(proxy) == [event("1"), event("2")]
    proxy.faults.on_events = lambda _, events: [*reversed(events), *events[:1]]
    assert await events_through(proxy) == [event("2"), event("1"), event("1")]
    proxy.faults.cuts_watch = lambda _: []
    assert await events_through(proxy) == []
    proxy.faults.cuts_watch = lambda _: [GONE]
    assert await events_through(proxy) == [GONE]
    assert all(each.is_watch for each in proxy.seen)


async def test_an_open_watch_can_be_ended(proxy: FaultProxy) -> None:
    url = f"{proxy.address}{WATCHED}&quiet=true"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        await eventually_in_loop(lambda: proxy.open_watches)
        proxy.end_watches()
        assert await answer.read() == b""
    assert not proxy.open_watches


def test_every_declared_child_joins_the_fault_tests_by_an_example() -> None:
    specs = specs_with_every_child().values()
    joined = {child.kind for spec in specs for child in children_of(spec)}
    assert joined >= {child.kind for child in CHILDREN if not child.is_optional_api}

"""Tests how a held request wakes a service: from a router pod to the operator, over real HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf, nan
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import BaseTestServer, TestServer

from llmservice_operator import idle_client, names
from llmservice_operator.api import Manifest
from llmservice_operator.api.router_messages import RouterReport
from llmservice_operator.api.wake import Wake
from llmservice_operator.cluster import Key
from llmservice_operator.idle_client import KEPT_SECONDS, TOLD_AGAIN_SECONDS, WakeClient
from llmservice_operator.metrics_server import waking as module
from llmservice_operator.metrics_server.rest import (
    ROOM_SECONDS,
    SETTLED_SECONDS,
    may_wake,
    refusal_of,
)
from llmservice_operator.metrics_server.waking import Waking, add_wakes
from operator_support.running import running
from operator_support.services import NOW
from shared_support.waiting import eventually_in_loop

QWEN, LLAMA = ("team", "qwen"), ("team", "llama")


def service(name: str, status: dict[str, Any] | None = None, **spec: Any) -> Manifest:
    return {
        "metadata": {"namespace": "team", "name": name},
        "spec": {"autoscaling": {"minReplicas": 0, "maxReplicas": 4}, **spec},
        "status": status or {},
    }


def pod(name: str, label: str, key: Key, **metadata: Any) -> Manifest:
    return {
        "metadata": {
            **{"namespace": key[0], "name": name, "uid": f"uid-of-{name}"},
            **{"labels": {label: key[1]}, **metadata},
        },
        "status": {"phase": "Running", "podIP": f"address-of-{name}"},
    }


@dataclass
class World:
    """Services and pods, and router pods that hold requests."""

    services: dict[str, Manifest] = field(default_factory=dict)
    pods: dict[str, Manifest] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    """Number of requests that the router pod at each address holds."""
    asked: list[str] = field(default_factory=list)
    away: set[str] = field(default_factory=set)
    is_held: asyncio.Event = field(default_factory=asyncio.Event)
    keeps: Callable[[Key], bool] = lambda _: True
    """Whether this metrics server watches a service."""

    def add(self, key: Key, routers: int = 1) -> None:
        self.services[key[1]] = service(key[1])
        for number in range(routers):
            name = f"{key[1]}-router-{number}"
            self.pods[name] = pod(name, names.ROUTER_LABEL, key)

    def add_replica(self, name: str, key: Key = QWEN, **metadata: Any) -> None:
        self.pods[name] = pod(name, names.SERVICE_LABEL, key, **metadata)

    def hold(self, router: str, requests: int) -> None:
        self.held[f"address-of-{router}"] = requests
        self.is_held.set()

    async def ask(self, address: str, seconds: float) -> int | None:
        assert seconds == module.WATCH_SECONDS
        self.asked.append(address)
        if address in self.away:
            return None
        while not self.held.get(address):
            self.is_held.clear()
            await self.is_held.wait()
        return self.held[address]


@asynccontextmanager
async def watching(
    world: World, held_percent: Callable[[Key, int], float] = lambda _, held: 10.0 * held
) -> AsyncIterator[Waking]:
    waking = Waking(
        lambda: world.services.values(),
        lambda: world.pods.values(),
        world.ask,
        held_percent,
        pauses=(0.01, 0.02),
        keeps=world.keeps,
    )
    async with running(waking.run()):
        yield waking


@pytest.fixture
def world() -> World:
    made = World()
    made.add(QWEN, routers=2)
    made.add(LLAMA)
    return made


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER_SECONDS", 0.0)
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.01)


async def test_one_question_waits_in_each_router_pod_of_a_service_without_replicas(
    world: World,
) -> None:
    world.add_replica("llama-1", LLAMA)
    async with watching(world) as waking:
        await eventually_in_loop(lambda: waking.watched == 2)
        assert (waking.rests(QWEN), waking.rests(LLAMA)) == (True, False)
        assert await waking.next_wakes(0.02) == {}
    assert sorted(world.asked) == ["address-of-qwen-router-0", "address-of-qwen-router-1"]


async def test_router_pods_are_searched_again_only_after_a_change(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEARCH_SECONDS", 0.001)
    searches, looks, changes = 0, 0, 1

    def services() -> Iterable[Manifest]:
        nonlocal searches
        searches += 1
        return world.services.values()

    def changed() -> int:
        nonlocal looks
        looks += 1
        return changes

    waking = Waking(
        services, lambda: world.pods.values(), world.ask, lambda *_: 0.0, changes=changed
    )
    async with running(waking.run()):
        await eventually_in_loop(lambda: looks > 3)
        assert (searches, waking.watched) == (1, 3)
        world.pods["llama-router-1"] = pod("llama-router-1", names.ROUTER_LABEL, LLAMA)
        changes += 1
        await eventually_in_loop(lambda: waking.watched == 4)
        assert searches == 2


async def test_the_held_requests_of_all_router_pods_of_a_service_wake_it(world: World) -> None:
    async with watching(world) as waking:
        first = asyncio.ensure_future(waking.next_wakes(60))
        await eventually_in_loop(lambda: waking.watched == 3)
        assert not first.done()
        world.hold("qwen-router-0", 3)
        assert await first == {QWEN: Wake(held_requests=3, held_percent=30.0)}
        world.hold("qwen-router-1", 4)
        wanted = {QWEN: Wake(held_requests=7, held_percent=70.0)}
        await eventually_in_loop(lambda: waking.wakes() == wanted)


async def test_held_requests_in_the_report_of_an_old_router_wake_a_service_at_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_replica("llama-1", LLAMA)
    async with watching(world) as waking:
        await eventually_in_loop(lambda: waking.rests(QWEN))
        await waking.heed(QWEN, RouterReport(held_requests=3, can_be_watched=True))
        await waking.heed(QWEN, RouterReport(held_requests=0))
        await waking.heed(LLAMA, RouterReport(held_requests=3))
        assert await waking.next_wakes(0.02) == {}

        waiting = asyncio.create_task(waking.next_wakes(60.0))
        await waking.heed(QWEN, RouterReport(held_requests=3))
        woken = {QWEN: Wake(held_requests=3, held_percent=30.0)}
        assert await waiting == woken
        assert waking.wakes() == woken
        monkeypatch.setattr(module, "REPORTED_SECONDS", -1.0)
        assert waking.wakes() == {}

        monkeypatch.undo()
        await waking.heed(QWEN, RouterReport(held_requests=3))
        world.add_replica("qwen-1")
        waking.note()
        await eventually_in_loop(lambda: waking.wakes() == {})


@pytest.mark.parametrize("impossible", [inf, nan, -1.0])
async def test_an_impossible_number_about_one_service_keeps_no_service_asleep(
    world: World, impossible: float
) -> None:
    def demand(key: Key, held: int) -> float:
        return impossible if key == QWEN else 10.0 * held

    world.hold("qwen-router-0", 3)
    world.hold("llama-router-0", 2)
    async with watching(world, demand) as waking, served(waking) as server:
        await eventually_in_loop(lambda: len(waking.wakes()) == 2)
        async with ClientSession() as session:
            answer = await session.get(server.make_url(names.WAKES_PATH))
            assert (answer.status, await answer.json()) == (
                200,
                {
                    "team/qwen": {"heldRequests": 3, "heldPercent": 1.0},
                    "team/llama": {"heldRequests": 2, "heldPercent": 20.0},
                },
            )


async def test_a_service_with_a_replica_is_no_longer_woken(world: World) -> None:
    world.hold("qwen-router-0", 3)
    async with watching(world) as waking:
        await eventually_in_loop(lambda: QWEN in waking.wakes())
        world.add_replica("qwen-1")
        waking.note()
        await eventually_in_loop(lambda: waking.watched == 1)
        assert waking.wakes() == {}


@pytest.mark.parametrize("state", ["leaving", "over"])
async def test_a_replica_that_ends_keeps_no_service_asleep(world: World, state: str) -> None:
    world.add_replica("qwen-1")
    async with watching(world) as waking:
        await eventually_in_loop(lambda: waking.watched == 1)
        if state == "leaving":
            world.add_replica("qwen-1", deletionTimestamp="2030-01-01T00:00:00Z")
        else:
            world.pods["qwen-1"]["status"]["phase"] = "Failed"
        waking.note()
        await eventually_in_loop(lambda: waking.watched == 3)


async def test_requests_whose_clients_have_left_wake_nothing(world: World) -> None:
    world.hold("qwen-router-0", 1)
    async with watching(world) as waking:
        await eventually_in_loop(lambda: QWEN in waking.wakes())
        world.held.clear()
        await eventually_in_loop(lambda: waking.wakes() == {})


async def test_a_router_pod_that_does_not_answer_is_asked_again(world: World) -> None:
    world.away = {"address-of-llama-router-0"}
    async with watching(world) as waking:
        await eventually_in_loop(lambda: world.asked.count("address-of-llama-router-0") > 3)
        world.away.clear()
        world.hold("llama-router-0", 1)
        await eventually_in_loop(lambda: LLAMA in waking.wakes())


@pytest.mark.parametrize(
    "changed",
    [
        service("qwen", autoscaling={"minReplicas": 1, "maxReplicas": 4}),
        service("qwen", autoscaling={"maxReplicas": 4}),
        service("qwen", autoscaling={"minReplicas": 0, "mode": "Paused"}),
        service("qwen", autoscaling=None, replicas=0),
        service("qwen", suspend=True),
    ],
)
async def test_only_services_that_the_next_request_wakes_are_watched(
    world: World, changed: Manifest
) -> None:
    assert not may_wake(changed)
    world.services["qwen"] = changed
    async with watching(world) as waking:
        await eventually_in_loop(lambda: waking.watched == 1)
    assert set(world.asked) == {"address-of-llama-router-0"}


@asynccontextmanager
async def served(waking: Waking) -> AsyncIterator[BaseTestServer]:
    app = web.Application()
    add_wakes(app, waking)
    async with TestServer(app) as server:
        yield server


async def test_the_operator_learns_of_a_held_request_at_once_and_while_it_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle_client, "KEPT_SECONDS", 0.2)
    woken: list[Key] = []
    async with watching(world) as waking, served(waking) as server:
        client = WakeClient(str(server.make_url("/")), woken.append)
        learning = asyncio.create_task(client.run())
        await eventually_in_loop(lambda: waking.watched == 3)
        began = asyncio.get_running_loop().time()
        world.hold("llama-router-0", 2)
        await eventually_in_loop(lambda: woken)
        print(f"woken after {asyncio.get_running_loop().time() - began:.3f} s")
        assert client.read(*LLAMA) == Wake(held_requests=2, held_percent=20.0)
        assert client.read(*QWEN) is None
        await eventually_in_loop(lambda: len(woken) > 1)
        world.add_replica("llama-1", LLAMA)
        waking.note()
        await eventually_in_loop(lambda: client.read(*LLAMA) is None)
        learning.cancel()
        await asyncio.wait([learning])
    assert set(woken) == {LLAMA}


async def test_a_metrics_server_that_ends_answers_its_operators(world: World) -> None:
    async with watching(world) as waking, served(waking) as server, ClientSession() as session:
        url = server.make_url(names.WAKES_PATH).with_query(wait="60")
        asked = asyncio.ensure_future(session.get(url))
        await eventually_in_loop(lambda: waking.watched == 3)
        await waking.end()
        async with await asked as answer:
            assert (answer.status, await answer.json()) == (200, {})


async def test_a_wait_that_is_no_number_is_refused(world: World) -> None:
    async with watching(world) as waking, served(waking) as server, ClientSession() as session:
        answer = await session.get(server.make_url(names.WAKES_PATH).with_query(wait="long"))
        assert answer.status == 400


@pytest.mark.parametrize(
    ("status", "text"), [(500, "{}"), (200, "[]"), (200, "{"), (200, '{"a/b": {}}'), (302, "{}")]
)
async def test_any_other_answer_wakes_nothing(status: int, text: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers={"location": "/"})

    app = web.Application()
    app.router.add_get(names.WAKES_PATH, answer)
    woken: list[Key] = []
    async with TestServer(app) as server, ClientSession() as session:
        client = WakeClient(None, woken.append)
        assert await client.ask(session, str(server.make_url(names.WAKES_PATH))) > 0
    assert woken == []
    await client.run()  # without a metrics server, nothing is asked


async def test_the_operator_hears_of_a_service_again_only_after_the_time_of_a_pass() -> None:
    found = {"team/qwen": {"heldRequests": 1, "heldPercent": 1.0}}

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(found)

    app = web.Application()
    app.router.add_get(names.WAKES_PATH, answer)
    seconds, woken = 1000.0, list[Key]()
    client = WakeClient(None, woken.append, monotonic=lambda: seconds)
    async with TestServer(app) as server, ClientSession() as session:
        url = str(server.make_url(names.WAKES_PATH))
        await client.ask(session, url)
        found["team/llama"] = found["team/qwen"]
        await client.ask(session, url)
        assert woken == [QWEN, LLAMA]
        seconds += TOLD_AGAIN_SECONDS
        del found["team/llama"]
        await client.ask(session, url)
        assert woken == [QWEN, LLAMA, QWEN]


async def test_a_service_must_be_woken_for_a_short_time_after_it_was_named() -> None:
    wake = {"heldRequests": 1, "heldPercent": 1.0}
    found = {"team/qwen": wake, "team/llama": wake}

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(found)

    app = web.Application()
    app.router.add_get(names.WAKES_PATH, answer)
    seconds = 1000.0
    client = WakeClient(None, monotonic=lambda: seconds)
    async with TestServer(app) as server, ClientSession() as session:
        url = str(server.make_url(names.WAKES_PATH))
        await client.ask(session, url)
        seconds += KEPT_SECONDS - 1
        # While a metrics server asks a router pod again, it does not know its held requests.
        del found["team/llama"]
        await client.ask(session, url)
    assert None not in (client.read(*QWEN), client.read(*LLAMA))
    seconds += 2
    assert client.read(*LLAMA) is None
    assert client.read(*QWEN) is not None
    seconds += KEPT_SECONDS
    assert client.read(*QWEN) is None


def ready(reason: str, age: float, status: str = "False") -> dict[str, Any]:
    since = (NOW - timedelta(seconds=age)).isoformat()
    condition = {"type": "Ready", "status": status, "reason": reason, "lastTransitionTime": since}
    return {"conditions": [condition]}


@pytest.mark.parametrize(
    ("reason", "age", "is_final"),
    [
        ("ImagePullError", SETTLED_SECONDS - 1, False),
        ("ImagePullError", SETTLED_SECONDS, True),
        ("ModelNotFound", SETTLED_SECONDS, True),
        ("CrashLoop", SETTLED_SECONDS, True),
        ("WaitingForGPU", ROOM_SECONDS - 1, False),
        ("WaitingForGPU", ROOM_SECONDS, True),
        ("LoadingModel", 3600.0, False),
        ("RolloutInProgress", 3600.0, False),
        ("EngineDied", 3600.0, False),
        ("AReasonOfALaterRelease", 3600.0, False),
    ],
)
def test_requests_are_refused_once_the_reason_in_the_status_is_final(
    reason: str, age: float, is_final: bool
) -> None:
    refusal = refusal_of(service("qwen", ready(reason, age)))
    assert (refusal is not None and refusal.begins <= NOW.timestamp()) == is_final
    if refusal is not None:
        assert refusal.why.startswith(f"the service cannot start ({reason}): ")


def test_a_refused_object_that_replicas_do_not_need_refuses_no_requests() -> None:
    status = ready("QuotaExceeded", 3600)
    failed = {"type": "Progressing", "status": "False", "reason": "QuotaExceeded"}
    assert refusal_of(service("qwen", status)) is not None
    status["conditions"].append(failed)
    assert refusal_of(service("qwen", status)) is None


def test_a_service_that_rests_or_has_no_status_yet_refuses_nothing() -> None:
    assert refusal_of(service("qwen", ready("Idle", 3600, "True"))) is None
    assert refusal_of(service("qwen")) is None
    without_time = {"conditions": [{"type": "Ready", "status": "False", "reason": "CrashLoop"}]}
    assert refusal_of(service("qwen", without_time)) is None


def test_a_service_that_is_deleted_or_suspended_refuses_requests_at_once() -> None:
    deleted = service("qwen")
    deleted["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    for manifest in (None, deleted):
        assert refusal_of(manifest) == (
            "the service is deleted; send the request to another service",
            -inf,
        )
    assert refusal_of(service("qwen", suspend=True)) == (
        "the service is suspended; send the request again when it is resumed",
        -inf,
    )


async def test_a_wake_that_another_metrics_server_knows_is_told_until_that_one_forgets_it(
    world: World,
) -> None:
    wake = {LLAMA: Wake(held_requests=2, held_percent=20.0)}
    world.keeps = lambda key: key == QWEN
    async with watching(world) as waking, served(waking) as server, ClientSession() as session:
        await eventually_in_loop(lambda: waking.watched == 2)
        first, _ = await asyncio.gather(waking.next_wakes(60), waking.learn("other", wake))
        assert first == wake
        async with session.get(server.make_url(f"{names.WAKES_PATH}?wait=0")) as answer:
            assert list(await answer.json()) == ["team/llama"]
        # Another metrics server gets only the wakes that this one has found itself.
        async with session.get(server.make_url(f"{names.WAKES_PATH}?wait=0&own=true")) as answer:
            assert await answer.json() == {}
        await waking.learn("other", {})
        assert await waking.next_wakes(0.0) == {}
    assert set(world.asked) == {"address-of-qwen-router-0", "address-of-qwen-router-1"}

"""Tests how a metrics server informs the router pods of the replicas, and reads their reports."""

import asyncio
import os
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any

import pytest
from aiohttp import web

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.router_messages import (
    HoldCounts,
    ListedReplica,
    RefusedRequest,
    ReplicaList,
    RouterReport,
)
from llmservice_operator.cluster import Key
from llmservice_operator.metrics_server import router_updates as module
from llmservice_operator.metrics_server.rest import Refusal
from llmservice_operator.metrics_server.router_updates import RouterClient, RouterUpdates
from llmservice_operator.scaling.signals import HoldCounters, RouterSnapshot
from operator_support.processes import free_port
from operator_support.running import running
from shared_support.waiting import eventually_in_loop

QWEN, LLAMA = ("team", "qwen"), ("team", "llama")
SUSPENDED = "the service is suspended"
PAUSES = (0.01, 0.01, 0.01)
REPORT = RouterReport(refused_requests=(RefusedRequest(digest="a" * 64, seconds_left=5.0),))


def pod(name: str, address: str, labels: dict[str, str], **metadata: Any) -> Manifest:
    return {
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": f"uid-of-{name}",
            "labels": labels,
            **metadata,
        },
        "status": {
            "phase": "Running",
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "router", "restartCount": 0}],
        },
    }


@dataclass
class World:
    """The pods of a cluster, and routers that accept lists."""

    pods: dict[str, Manifest] = field(default_factory=dict)
    accepted: defaultdict[str, list[ReplicaList]] = field(default_factory=lambda: defaultdict(list))
    attempts: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    reports: list[tuple[Key, RouterReport]] = field(default_factory=list)
    refusing: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    held: dict[str, int] = field(default_factory=dict)
    """Number of requests that the router at each address holds."""
    counts: dict[str, HoldCounts] = field(default_factory=dict)
    """Counters that the router at each address reports."""
    watched: set[str] = field(default_factory=set)
    """Addresses of the routers that can be asked for their next held request."""
    held_next: dict[str, int] = field(default_factory=dict)
    """The same, after the present exchange."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Not set while the routers take their time to answer."""
    changes: int | None = None
    """How often a pod has changed so far. None: at every look."""
    looks: int = 0
    searches: int = 0
    gone: dict[Key, Refusal] = field(default_factory=dict)
    """Services that will have no replica, each with the reason."""
    reasons_read: list[Key] = field(default_factory=list)
    """Services whose status was read for such a reason."""
    resting: set[Key] = field(default_factory=set)
    time: float = 1_000.0

    def __post_init__(self) -> None:
        self.gate.set()

    def add_replica(self, name: str, address: str, key: Key = QWEN, **metadata: Any) -> None:
        self.pods[name] = pod(name, address, {names.SERVICE_LABEL: key[1]}, **metadata)

    def add_router(self, name: str, address: str, key: Key = QWEN) -> None:
        self.pods[name] = pod(name, address, {names.ROUTER_LABEL: key[1]})

    def count_changes(self) -> int:
        self.looks += 1
        return self.looks if self.changes is None else self.changes

    async def look(self, times: int) -> None:
        """Wait until the router pods have been looked at again, this number of times."""
        wanted = self.looks + times
        await eventually_in_loop(lambda: self.looks >= wanted)

    def search(self) -> Iterable[Manifest]:
        self.searches += 1
        return self.pods.values()

    def pods_of(self, key: Key) -> Iterator[Manifest]:
        for each in self.pods.values():
            if each["metadata"]["labels"].get(names.SERVICE_LABEL) == key[1]:
                yield each

    async def send(self, address: str, listed: ReplicaList) -> RouterReport | None:
        self.attempts[address] += 1
        if address in self.silent:
            await asyncio.Event().wait()
        if address in self.refusing:
            return None
        self.accepted[address].append(listed)
        number = self.held.get(address, 0)
        await self.gate.wait()
        self.held |= self.held_next
        counts = self.counts.get(address)
        is_new = address in self.watched
        return REPORT.model_copy(
            update={"held_requests": number, "hold_counts": counts, "can_be_watched": is_new}
        )

    def now(self) -> float:
        return self.time

    def refusal_of(self, key: Key) -> Refusal | None:
        self.reasons_read.append(key)
        return self.gone.get(key)

    async def read(self, key: Key, report: RouterReport) -> None:
        self.reports.append((key, report))

    def last(self, address: str) -> list[str]:
        """Return the names of the replicas in the last list of a router."""
        return [each.name for each in self.accepted[address][-1].replicas]


@asynccontextmanager
async def informing(world: World) -> AsyncIterator[RouterUpdates]:
    updates = RouterUpdates(
        world.pods_of,
        world.search,
        world.count_changes,
        world.send,
        world.read,
        PAUSES,
        world.now,
        world.refusal_of,
        lambda key: key in world.resting,
    )
    async with running(updates.run()):
        yield updates


@pytest.fixture
def world() -> World:
    made = World()
    made.add_replica("qwen-1", "10.0.0.1")
    made.add_replica("llama-1", "10.0.0.2", LLAMA)
    made.add_router("qwen-router-1", "10.0.1.1")
    made.add_router("qwen-router-2", "10.0.1.2")
    made.add_router("llama-router-1", "10.0.1.3", LLAMA)
    return made


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEARCH_SECONDS", 0.02)
    monkeypatch.setattr(module, "GATHER_SECONDS", 0.0)


async def test_every_router_pod_gets_the_replicas_of_its_own_service(world: World) -> None:
    world.add_replica("qwen-2", "10.0.0.3", deletionTimestamp="2030-01-01T00:00:00Z")
    async with informing(world):
        await eventually_in_loop(lambda: len(world.accepted) == 3)
    (listed,) = world.accepted["10.0.1.1"]
    assert (listed.namespace, listed.service) == QWEN
    assert [each.model_dump(mode="json") for each in listed.replicas] == [
        {
            "name": "qwen-1",
            "uid": "uid-of-qwen-1",
            "address": "10.0.0.1",
            "is_ready": True,
            "is_draining": False,
        },
        {
            "name": "qwen-2",
            "uid": "uid-of-qwen-2",
            "address": "10.0.0.3",
            "is_ready": False,
            "is_draining": True,
        },
    ]
    assert world.accepted["10.0.1.2"] == [listed]
    assert world.last("10.0.1.3") == ["llama-1"]


async def held(updates: RouterUpdates) -> dict[Key, dict[str, int | None]]:
    """Return how many requests each router holds, as of now."""
    return {
        key: {it.name: None if it.snapshot is None else it.snapshot.held for it in pods}
        for key, pods in (await updates.ask()).items()
    }


FIRST, SECOND, THIRD = (
    f"uid-of-{it}/0" for it in ("qwen-router-1", "qwen-router-2", "llama-router-1")
)


async def test_of_a_service_that_rests_only_the_routers_are_asked_in_which_no_question_waits(
    world: World,
) -> None:
    world.watched = {"10.0.1.1", "10.0.1.3"}
    world.resting = {QWEN}
    async with informing(world) as updates:
        await eventually_in_loop(lambda: len(world.reports) >= 3)
        assert await held(updates) == {QWEN: {SECOND: 0}, LLAMA: {THIRD: 0}}
        (old,) = (await updates.ask())[QWEN]
        assert old.snapshot is not None
        assert not old.snapshot.can_be_watched


async def test_a_round_gets_what_every_router_holds_at_that_time(world: World) -> None:
    async with informing(world) as updates:
        await eventually_in_loop(lambda: len(world.accepted) == 3)
        for number in (0, 30, 7, 0):
            world.held = {"10.0.1.1": number, "10.0.1.2": 12}
            assert await held(updates) == {QWEN: {FIRST: number, SECOND: 12}, LLAMA: {THIRD: 0}}
        (report, _) = (await updates.ask())[QWEN]
        assert report.snapshot is not None
        assert report.snapshot.at == world.now()


async def test_a_round_gets_what_a_router_has_counted_unless_the_router_is_older(
    world: World,
) -> None:
    counts = HoldCounts(started=900.0, arrived=9, released=4, timed_out=2, refused=7)
    world.counts["10.0.1.1"] = counts
    world.watched.add("10.0.1.1")
    async with informing(world) as updates:
        await eventually_in_loop(lambda: len(world.accepted) == 3)
        pods = {each.name: each.snapshot for each in (await updates.ask())[QWEN]}
    assert pods[FIRST] == RouterSnapshot(world.now(), 0, 900.0, HoldCounters(9, 4, 2, 7), True)
    assert pods[SECOND] == RouterSnapshot(world.now(), 0)


async def test_an_exchange_that_began_before_the_round_is_no_answer_to_it(world: World) -> None:
    async with informing(world) as updates:
        await eventually_in_loop(lambda: len(world.accepted) == 3)
        world.gate.clear()
        world.add_replica("qwen-2", "10.0.0.3")
        updates.note(QWEN)
        await eventually_in_loop(lambda: world.attempts["10.0.1.1"] == 2)

        async def go_on() -> None:
            world.held_next = {"10.0.1.1": 30}
            world.gate.set()

        asked, _ = await asyncio.gather(held(updates), go_on())
        assert asked[QWEN][FIRST] == 30


async def test_a_round_does_not_wait_for_a_router_that_does_not_accept_lists(world: World) -> None:
    world.refusing = {"10.0.1.1"}
    async with informing(world) as updates:
        await eventually_in_loop(lambda: world.attempts["10.0.1.1"] > 2)
        attempts = world.attempts["10.0.1.1"]
        assert (await held(updates))[QWEN] == {FIRST: None, SECOND: 0}
        assert world.attempts["10.0.1.1"] - attempts <= 1
        world.refusing.clear()
        await eventually_in_loop(lambda: world.last("10.0.1.1") == ["qwen-1"])
        assert (await held(updates))[QWEN] == {FIRST: 0, SECOND: 0}


async def test_a_round_waits_for_a_silent_router_only_for_a_time_and_asks_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROUND_SECONDS", 0.05)
    async with informing(world) as updates:
        await eventually_in_loop(lambda: len(world.accepted) == 3)
        world.silent = {"10.0.1.1"}
        for _ in range(3):
            assert (await held(updates))[QWEN] == {FIRST: None, SECOND: 0}
        assert world.attempts["10.0.1.1"] == 2
        del world.pods["qwen-router-1"]
        world.add_router("later", "10.0.1.4")
        await eventually_in_loop(lambda: "10.0.1.4" in world.accepted)
        assert FIRST not in (await held(updates))[QWEN]


async def test_a_change_is_sent_once_and_only_to_the_routers_of_its_service(world: World) -> None:
    async with informing(world) as updates:
        await eventually_in_loop(lambda: len(world.accepted) == 3)
        world.add_replica("qwen-2", "10.0.0.3")
        updates.note(QWEN)
        await eventually_in_loop(lambda: world.last("10.0.1.2") == ["qwen-1", "qwen-2"])
        updates.note(QWEN)
        updates.note(LLAMA)
        world.add_router("qwen-router-3", "10.0.1.4")
        await eventually_in_loop(lambda: "10.0.1.4" in world.accepted)
    assert {address: len(lists) for address, lists in world.accepted.items()} == {
        "10.0.1.1": 2,
        "10.0.1.2": 2,
        "10.0.1.3": 1,
        "10.0.1.4": 1,
    }


async def test_router_pods_are_searched_only_after_a_change_of_a_pod(world: World) -> None:
    world.changes = 0
    world.gone = {QWEN: Refusal(SUSPENDED, world.time + 1)}
    del world.pods["qwen-1"]
    async with informing(world):
        await eventually_in_loop(lambda: len(world.accepted) == 3)
        # The looks go on, which only a service without a serving replica shows.
        world.time += 1
        await eventually_in_loop(lambda: world.accepted["10.0.1.1"][-1].refusal is not None)
        assert world.searches == 1
        world.add_router("qwen-router-3", "10.0.1.4")
        world.changes = 1
        await eventually_in_loop(lambda: "10.0.1.4" in world.accepted)
    assert world.searches == 2


async def test_routers_learn_that_no_replica_will_come(world: World) -> None:
    async with informing(world) as updates:
        await eventually_in_loop(lambda: len(world.accepted) == 3)
        world.gone = {QWEN: Refusal(SUSPENDED, -inf)}
        del world.pods["qwen-1"]
        updates.note(QWEN)
        await eventually_in_loop(lambda: world.accepted["10.0.1.2"][-1].refusal == SUSPENDED)
        assert world.accepted["10.0.1.1"][-1].refusal == SUSPENDED
        world.gone.clear()
        updates.note(QWEN)
        await eventually_in_loop(lambda: world.accepted["10.0.1.1"][-1].refusal is None)
    assert {each.refusal for each in world.accepted["10.0.1.3"]} == {None}


async def test_requests_are_refused_without_an_event_once_the_patience_with_refused_pods_ends(
    world: World,
) -> None:
    # A quota refuses the pod of a service that a request has woken, so no pod ever exists.
    del world.pods["qwen-1"]
    world.resting = {QWEN}
    refused = "the service cannot start (QuotaExceeded)"
    async with informing(world) as updates:
        await eventually_in_loop(lambda: len(world.accepted) == 3)
        world.gone = {QWEN: Refusal(refused, world.time + 180)}
        updates.note(QWEN)
        await eventually_in_loop(lambda: world.reasons_read[-1] == QWEN)
        world.time += 179
        await world.look(3)
        assert {each.refusal for each in world.accepted["10.0.1.1"]} == {None}
        world.time += 1
        await eventually_in_loop(lambda: world.accepted["10.0.1.1"][-1].refusal == refused)


async def test_the_status_of_a_service_is_read_again_only_after_a_change_or_at_the_end_of_patience(
    world: World,
) -> None:
    del world.pods["qwen-1"]
    world.gone = {QWEN: Refusal(SUSPENDED, world.time + 1)}
    world.changes = 0
    async with informing(world):
        await eventually_in_loop(lambda: len(world.accepted) == 3)
        before = len(world.reasons_read)
        await world.look(10)
        assert len(world.reasons_read) == before
        world.time += 1
        await world.look(10)
    assert world.reasons_read[before:] == [QWEN]


async def test_a_replica_that_serves_keeps_requests_from_being_refused(world: World) -> None:
    world.gone = {QWEN: Refusal("the service cannot start (CrashLoop)", -inf)}
    async with informing(world):
        await eventually_in_loop(lambda: len(world.accepted) == 3)
    assert {each.refusal for each in world.accepted["10.0.1.1"]} == {None}


async def test_a_list_is_sent_again_until_the_router_accepts_it(world: World) -> None:
    world.refusing.add("10.0.1.1")
    async with informing(world):
        await eventually_in_loop(lambda: world.attempts["10.0.1.1"] >= 2)
        attempts = world.attempts["10.0.1.1"]
        world.refusing.clear()
        await eventually_in_loop(lambda: world.last("10.0.1.1") == ["qwen-1"])
    assert world.attempts["10.0.1.1"] == attempts + 1


async def test_a_router_that_refuses_all_attempts_is_named_once_and_tried_further(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.refusing.add("10.0.1.1")
    async with informing(world):
        await eventually_in_loop(lambda: world.attempts["10.0.1.1"] > 3 * len(PAUSES))
        world.refusing.clear()
        await eventually_in_loop(lambda: world.last("10.0.1.1") == ["qwen-1"])
    assert caplog.text.count("10.0.1.1 of team/qwen takes no list") == 1


async def test_each_round_repeats_the_list_for_the_reports_of_the_routers(world: World) -> None:
    async with informing(world) as updates:
        await eventually_in_loop(lambda: len(world.accepted) == 3)
        await updates.ask()
        await updates.ask()
        await eventually_in_loop(lambda: len(world.reports) == 9)
    assert len(world.accepted["10.0.1.3"]) == 3
    assert (LLAMA, REPORT) in world.reports
    assert (QWEN, REPORT) in world.reports
    assert len(set(map(str, world.accepted["10.0.1.3"]))) == 1


async def test_a_router_that_does_not_answer_delays_no_other_and_has_one_request(
    world: World,
) -> None:
    world.silent.add("10.0.1.1")
    async with informing(world) as updates:
        for number in range(2, 6):
            world.add_replica(f"qwen-{number}", f"10.0.0.{number + 1}")
            updates.note(QWEN)
            await eventually_in_loop(
                lambda expected=number: len(world.last("10.0.1.2")) == expected  # type: ignore[misc]
            )
    assert world.attempts["10.0.1.1"] == 1


async def test_a_router_whose_container_starts_again_gets_the_list_again(world: World) -> None:
    async with informing(world):
        await eventually_in_loop(lambda: len(world.accepted) == 3)
        world.pods["qwen-router-1"]["status"]["containerStatuses"][0]["restartCount"] = 1
        await eventually_in_loop(lambda: len(world.accepted["10.0.1.1"]) == 2)
    assert len(world.accepted["10.0.1.2"]) == 1


@pytest.mark.parametrize("state", ["gone", "without an address", "ended"])
async def test_a_router_pod_that_has_ended_gets_nothing_more(world: World, state: str) -> None:
    world.silent.add("10.0.1.1")
    async with informing(world) as updates:
        await eventually_in_loop(lambda: world.attempts["10.0.1.1"] == 1)
        if state == "gone":
            del world.pods["qwen-router-1"]
        elif state == "ended":
            world.pods["qwen-router-1"]["status"]["phase"] = "Failed"
        else:
            del world.pods["qwen-router-1"]["status"]["podIP"]
        world.add_router("later", "10.0.1.4")
        await eventually_in_loop(lambda: "10.0.1.4" in world.accepted)
        world.silent.clear()
        world.add_replica("qwen-2", "10.0.0.3")
        updates.note(QWEN)
        await eventually_in_loop(lambda: len(world.last("10.0.1.2")) == 2)
    assert world.attempts["10.0.1.1"] == 1


@pytest.mark.parametrize("address", [None, "", "no address"])
async def test_a_pod_without_a_valid_address_is_left_out(world: World, address: str | None) -> None:
    world.add_replica("qwen-2", address or "")
    if address is None:
        del world.pods["qwen-2"]["status"]["podIP"]
    async with informing(world):
        await eventually_in_loop(lambda: world.last("10.0.1.1") == ["qwen-1"])


LISTED = ReplicaList(
    namespace="team",
    service="qwen",
    replicas=(
        ListedReplica.model_validate(
            {
                "name": "qwen-1",
                "uid": "u",
                "address": "10.0.0.1",
                "is_ready": True,
                "is_draining": False,
            }
        ),
    ),
)


@asynccontextmanager
async def a_router(
    status: int | None, answer_body: str = ""
) -> AsyncIterator[tuple[RouterClient, list[bytes]]]:
    """Serve at a port of the loopback address; the status None means that no answer comes."""
    bodies: list[bytes] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        assert (request.method, request.path) == ("PUT", names.ROUTER_REPLICAS_PATH)
        bodies.append(await request.read())
        if status is None:
            await asyncio.Event().wait()
        headers = {"location": "http://127.0.0.1:1/"}
        return web.Response(status=status or 500, text=answer_body, headers=headers)

    runner = web.ServerRunner(web.Server(answer, handler_cancellation=True), shutdown_timeout=0)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    client = RouterClient(port)
    try:
        yield client, bodies
    finally:
        await client.close()
        await runner.cleanup()


def silent_seconds(port: int) -> list[int]:
    """Return the seconds of silence after which the kernel probes this process's connections to a
    port of the loopback address; 0 for never.
    """
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as each:
            if each.family == socket.AF_INET and each.getpeername()[1] == port:
                is_probed = each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                idle = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                found.append(idle if is_probed else 0)
    return found


async def test_a_network_that_forgets_silent_connections_remembers_those_with_a_question() -> None:
    async def wait(_: web.BaseRequest) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    runner = web.ServerRunner(web.Server(wait, handler_cancellation=True), shutdown_timeout=0)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    client = RouterClient(port)
    asked = asyncio.create_task(client.next_held("127.0.0.1", 600))
    try:
        await eventually_in_loop(lambda: silent_seconds(port) == [module.PROBE_SECONDS])
    finally:
        asked.cancel()
        await client.close()
        await runner.cleanup()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    began = asyncio.get_running_loop().time()
    yield
    assert asyncio.get_running_loop().time() - began < seconds


async def test_the_client_sends_the_list_as_json_and_reads_the_report() -> None:
    body = REPORT.model_dump_json(by_alias=True)
    async with a_router(200, body) as (client, bodies):
        assert await client.send("127.0.0.1", LISTED) == REPORT
        # An address in the status of a pod is never looked up in DNS.
        assert await client.send("localhost", LISTED) is None
    assert len(bodies) == 1
    assert ReplicaList.model_validate_json(bodies[0]) == LISTED


async def test_a_report_of_an_older_or_newer_router_is_read() -> None:
    for body in ("{}", '{"heldRequests": 0, "laterField": {"x": 1}}'):
        async with a_router(200, body) as (client, _):
            assert await client.send("127.0.0.1", LISTED) == RouterReport()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((status, "{}") for status in (204, 302, 403, 404, 500)),
        (200, ""),
        (200, '{"refusedRequests": [{"digest": "x", "secondsLeft": 1}]}'),
        (200, '{"holdCounts": {"started": 1, "arrived": -1}}'),
        (200, " " * module.LONGEST_REPORT + "{}"),
    ],
)
async def test_any_other_answer_is_a_refusal(status: int, body: str) -> None:
    async with a_router(status, body) as (client, bodies):
        assert await client.send("127.0.0.1", LISTED) is None
    assert len(bodies) == 1


async def test_a_router_that_does_not_answer_or_listen_costs_a_bounded_time() -> None:
    async with a_router(None) as (client, _):
        with time_limit(module.TIMEOUT_SECONDS + 2):
            assert await client.send("127.0.0.1", LISTED) is None
            assert await client.send("127.0.0.2", LISTED) is None
            assert await client.send("::1", LISTED) is None

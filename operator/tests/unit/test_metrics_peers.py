"""Tests four metrics servers that exchange their reports over real HTTP."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.wake import Wake
from llmservice_operator.metrics_server import peers as module
from llmservice_operator.metrics_server import waking as waking_module
from llmservice_operator.metrics_server.fleet import Fleet
from llmservice_operator.metrics_server.peers import PeerClient, Peers
from llmservice_operator.metrics_server.registration import NAMESPACES_ONLY
from llmservice_operator.metrics_server.report_api import create_report_app
from llmservice_operator.metrics_server.waking import Waking, add_wakes
from llmservice_operator.sharding import Ring, Shares
from operator_support.fleet import KEY, TICK, World
from operator_support.processes import free_port
from operator_support.running import running
from shared_support.waiting import eventually_in_loop

IDLE: Manifest = {
    "metadata": {"namespace": "team", "name": "idle"},
    "spec": {"autoscaling": {"minReplicas": 0, "maxReplicas": 4}},
}
ROUTER: Manifest = {
    "metadata": {
        **{"namespace": "team", "name": "idle-router-0", "uid": "uid-of-the-router"},
        "labels": {names.ROUTER_LABEL: "idle"},
    },
    "status": {"phase": "Running", "podIP": "10.0.0.9"},
}


@dataclass
class Member:
    """A metrics server with its port for the others."""

    name: str
    fleet: Fleet
    waking: Waking
    peers: Peers
    server: BaseTestServer


@dataclass
class Release:
    world: World = field(default_factory=World)
    members: dict[str, Member] = field(default_factory=dict)
    is_held: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the router of the idle service holds a request."""

    @property
    def order(self) -> list[Member]:
        """All members. The learner of the service is first, and then its follower."""
        keepers = Ring(self.members).keepers(KEY)
        return [self.members[name] for name in (*keepers, *(self.members.keys() - set(keepers)))]

    async def round(self) -> None:
        self.world.pods.now += TICK
        self.world.pods.serve(8.0)
        for member in self.order:
            if member.name not in self.world.silent:
                await member.fleet.round(self.world.pods.now)

    def all_know(self, *besides: Member) -> bool:
        """Return whether all members but some know the report of the last round."""
        at = self.world.pods.now
        reports = [it.fleet.reports.get(KEY) for it in self.order if it not in besides]
        return all(report is not None and report.at == at for report in reports)


@asynccontextmanager
async def _member(release: Release, client: PeerClient) -> AsyncIterator[Member]:
    port = free_port()
    name = f"127.0.0.1:{port}"

    def shares() -> Shares:
        return Shares(name, frozenset(release.members))

    async def next_held(address: str, seconds: float) -> int:
        await release.is_held.wait()
        return 2

    world = release.world
    fleet = Fleet(
        lambda: world.services,
        world.pods.manifests,
        world.pods,
        lambda: NAMESPACES_ONLY,
        {},
        shares=shares,
        silent=lambda: peers.silent,
    )
    waking = Waking(
        lambda: [IDLE],
        lambda: [ROUTER],
        next_held,
        lambda _, held: 10.0 * held,
        keeps=lambda key: shares().keeps(key),
    )
    peers = Peers(shares, client.reports, client.wakes, fleet.take, waking.learn, 0.01)
    app = create_report_app(fleet)
    add_wakes(app, waking)
    server = TestServer(app, port=port)
    await server.start_server()
    try:
        async with running(peers.run()), running(waking.run()):
            yield Member(name, fleet, waking, peers, server)
    finally:
        await server.close()


@pytest.fixture
async def release(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Release]:
    monkeypatch.setattr(module, "SEARCH_SECONDS", 0.01)
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(module, "WAKE_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(waking_module, "SEARCH_SECONDS", 0.01)
    made, client = Release(), PeerClient()
    made.world.pods.add("pod")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        for _ in range(4):
            member = await stack.enter_async_context(_member(made, client))
            made.members[member.name] = member
        yield made


async def test_all_metrics_servers_get_the_report_of_each_round_from_the_learner(
    release: Release,
) -> None:
    await eventually_in_loop(lambda: all(it.peers.are_asked for it in release.order))
    for _ in range(3):
        await release.round()
        await eventually_in_loop(release.all_know)
    learner, follower, *others = release.order
    assert [len(it.fleet.watched_reports) for it in (learner, follower, *others)] == [1, 1, 0, 0]


async def test_when_the_learner_ends_all_get_the_report_of_the_follower(release: Release) -> None:
    await release.round()
    await eventually_in_loop(release.all_know)
    learner, follower, *others = release.order
    await learner.server.close()
    release.world.silent = {learner.name}
    await eventually_in_loop(lambda: all(it.peers.silent for it in (follower, *others)))

    await release.round()
    await eventually_in_loop(lambda: release.all_know(learner))
    assert all(it.peers.silent == {learner.name} for it in (follower, *others))

    # Once it is no member any more, nobody asks it.
    del release.members[learner.name]
    await eventually_in_loop(lambda: not any(it.peers.silent for it in (follower, *others)))


async def test_an_answer_that_makes_no_sense_is_no_answer() -> None:
    asked: list[Mapping[str, str]] = []

    async def strange(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        return web.json_response({"team/qwen": {"at": "x"}})

    app = web.Application()
    app.router.add_get(names.LOAD_REPORTS_PATH, strange)
    client = PeerClient()
    async with TestServer(app) as server:
        member = f"{server.host}:{server.port}"
        assert await client.reports(member, 10.0, [member]) is None
        assert await client.wakes(member) is None
        assert asked == [{"at": "10.001000", "wait": "5", "learner": member}]
    assert await client.reports(member, 10.0, [member]) is None
    await client.close()


async def test_a_wake_reaches_all_metrics_servers(release: Release) -> None:
    waits = [asyncio.ensure_future(it.waking.next_wakes(60)) for it in release.order]
    await eventually_in_loop(lambda: sum(it.waking.watched for it in release.order) == 2)
    release.is_held.set()
    wake = {("team", "idle"): Wake(held_requests=2, held_percent=20.0)}
    assert [await each for each in waits] == [wake] * 4

"""Tests that a missing APIService is made, and that a foreign APIService is left alone."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.cluster import Cluster
from llmservice_operator.errors import ClusterError, Conflict
from llmservice_operator.kinds import API_SERVICES, CLUSTER_ROLES, Kind
from llmservice_operator.metrics_server import registration
from llmservice_operator.metrics_server.certificates import issue
from llmservice_operator.metrics_server.registration import API_SERVICE, Endpoint, Registration
from operator_support.processes import utc_now
from shared_support.waiting import eventually_in_loop

FOREIGN: Manifest = {
    "metadata": {"name": API_SERVICE, "labels": {}},
    "spec": {"service": {"namespace": "keda", "name": "keda-metrics"}},
}
AUTHORITY = issue(["metrics.llm.svc"], utc_now()).authority


class World:
    """A cluster with at most one APIService. Its reads and writes fail if a test sets an error."""

    def __init__(self, live: Manifest | None = None) -> None:
        self.live = live
        self.read_error: ClusterError | None = None
        self.write_error: ClusterError | None = None
        self.is_ready = True
        self.reads = 0
        self.writes: list[str] = []

    async def read(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        if kind is CLUSTER_ROLES:
            return {"metadata": {"name": name, "uid": "role"}}
        assert (kind, namespace, name) == (API_SERVICES, None, API_SERVICE)
        self.reads += 1
        if self.read_error is not None:
            raise self.read_error
        return self.live

    async def write(self, method: str, path: str, body: Mapping[str, Any]) -> Manifest:
        if self.write_error is not None:
            raise self.write_error
        self.writes.append(method)
        self.live = {**body}
        return self.live

    @asynccontextmanager
    async def registered(self) -> AsyncIterator[Registration]:
        endpoint = Endpoint("llm", "metrics", 443)
        cluster = cast(Cluster, self)
        found = Registration(
            cluster, endpoint, "role", lambda: AUTHORITY, utc_now, lambda: self.is_ready
        )
        running = asyncio.create_task(found.run())
        try:
            yield found
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def until_read(self, times: int = 3) -> None:
        before = self.reads
        await eventually_in_loop(lambda: self.reads >= before + times)


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(registration, "RETRY_SECONDS", 0.01)


async def test_the_api_service_is_made_once_and_again_after_its_deletion() -> None:
    world = World()
    async with world.registered() as found:
        await eventually_in_loop(lambda: found.state.is_served)
        await world.until_read()
        assert world.writes == ["POST"]
        world.live = None
        await eventually_in_loop(lambda: world.writes == ["POST", "POST"])


async def test_a_process_that_is_not_ready_registers_nothing_and_keeps_what_exists() -> None:
    world = World()
    world.is_ready = False
    async with world.registered() as found:
        await world.until_read()
        assert world.writes == []
        assert "registers it as soon as it is ready" in found.state.message
        world.is_ready = True
        await eventually_in_loop(lambda: found.state.is_served)
        world.is_ready = False
        await world.until_read()
        assert found.state.is_served
        assert world.writes == ["POST"]


async def test_a_foreign_api_service_is_left_alone_until_its_owner_deletes_it() -> None:
    world = World(FOREIGN)
    async with world.registered() as found:
        await world.until_read()
        assert found.state.owner == "keda/keda-metrics"
        assert world.writes == []
        world.live = None
        await eventually_in_loop(lambda: found.state.is_served)


async def test_an_unreachable_api_server_changes_nothing() -> None:
    world = World()
    async with world.registered() as found:
        await eventually_in_loop(lambda: found.state.is_served)
        world.read_error = ClusterError("no answer")
        await world.until_read()
        assert found.state.is_served
        assert world.writes == ["POST"]


async def test_a_write_that_fails_is_reported_and_repeated() -> None:
    world = World()
    world.write_error = ClusterError("the quota is used up")
    async with world.registered() as found:
        await eventually_in_loop(lambda: "the quota is used up" in found.state.message)
        world.write_error = None
        await eventually_in_loop(lambda: found.state.is_served)


async def test_another_replica_that_was_faster_is_no_problem() -> None:
    world = World()
    world.write_error = Conflict("changed")
    async with world.registered() as found:
        await world.until_read()
        assert "changed" not in found.state.message


async def test_a_new_authority_is_registered_without_waiting_for_the_next_poll(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registration, "POLL_SECONDS", 1000.0)
    world = World()
    async with world.registered() as found:
        await eventually_in_loop(lambda: world.reads == 1)
        found.requeue()
        await eventually_in_loop(lambda: world.reads == 2)

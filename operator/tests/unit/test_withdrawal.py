"""Tests that the APIService of the operator is deleted only after a long time without a server."""

import asyncio
from typing import Any, cast

import pytest

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.cluster import Cluster
from llmservice_operator.errors import ClusterError, Conflict, Forbidden
from llmservice_operator.kinds import API_SERVICES, Kind
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.withdrawal import API_SERVICE, AWAY_SECONDS, Withdrawal
from shared_support.waiting import eventually_in_loop


def api_service(reason: str = "MissingEndpoints", status: str = "False", **other: Any) -> Manifest:
    """Return the operator's APIService with a condition of the API server."""
    return {
        "apiVersion": API_SERVICES.api_version,
        "kind": API_SERVICES.kind,
        "metadata": {
            "name": API_SERVICE,
            "uid": "first",
            "labels": {names.MANAGED_BY_LABEL: names.FIELD_MANAGER},
            **other,
        },
        "spec": {"service": {"namespace": "llm", "name": "metrics"}},
        "status": {"conditions": [{"type": "Available", "status": status, "reason": reason}]},
    }


class World:
    """A cluster with at most one APIService, and a clock."""

    def __init__(self, live: Manifest | None = None) -> None:
        self.live = live
        self.now = 0.0
        self.reads = 0
        self.error: ClusterError | None = None
        self.delete_error: ClusterError | None = None
        self.withdrawal = Withdrawal(
            cast(Cluster, self), "llm", "metrics", poll_seconds=0, monotonic=lambda: self.now
        )

    async def read(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        assert (kind, namespace, name) == (API_SERVICES, None, API_SERVICE)
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self.live

    async def delete(self, live: Manifest) -> None:
        if self.delete_error is not None:
            raise self.delete_error
        assert live == self.live
        self.live = None

    async def check_after(self, seconds: float) -> bool:
        """Let time pass and check once; return whether the APIService is gone."""
        self.now += seconds
        await self.withdrawal.check()
        return self.live is None


async def test_an_api_service_without_a_server_is_deleted_after_the_time() -> None:
    world = World(api_service())

    assert not await world.check_after(0)
    assert not await world.check_after(AWAY_SECONDS - 1)
    assert await world.check_after(1)


@pytest.mark.parametrize(
    "between",
    [
        api_service("Passed", "True"),
        api_service("FailedDiscoveryCheck"),
        api_service(uid="second"),
        None,
    ],
    ids=["a server is ready", "a server is ready and not reached", "another object", "no object"],
)
async def test_the_time_begins_again_when_a_server_was_ready_in_between(
    between: Manifest | None,
) -> None:
    world = World(api_service())
    await world.check_after(0)
    world.live = between
    await world.check_after(AWAY_SECONDS / 2)
    world.live = api_service()

    assert not await world.check_after(AWAY_SECONDS / 2)
    assert not await world.check_after(AWAY_SECONDS - 1)
    assert await world.check_after(1)


@pytest.mark.parametrize(
    "live",
    [
        api_service(labels={}),
        {**api_service(), "spec": {"service": {"namespace": "keda", "name": "metrics"}}},
        {**api_service(), "spec": {}},
        {**api_service(), "status": {}},
        api_service("FailedDiscoveryCheck"),
        api_service(deletionTimestamp="2026-01-01T00:00:00Z"),
    ],
    ids=["without our label", "of another Service", "of the API server", "without a condition",
         "not reached", "that is being deleted"],
)  # fmt: skip
async def test_any_other_api_service_is_left_alone(live: Manifest) -> None:
    world = World(live)
    await world.check_after(0)

    assert not await world.check_after(10 * AWAY_SECONDS)


async def test_an_api_service_that_was_changed_just_now_is_kept_and_the_time_begins_again() -> None:
    world = World(api_service())
    world.delete_error = Conflict("changed")
    await world.check_after(0)
    assert not await world.check_after(AWAY_SECONDS)

    world.delete_error = None
    assert not await world.check_after(AWAY_SECONDS)
    assert await world.check_after(AWAY_SECONDS)


async def test_no_answer_begins_the_time_again_and_a_missing_right_may_be_granted_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(api_service())
    world.error = ClusterError("no answer")
    running = asyncio.create_task(world.withdrawal.run())
    await eventually_in_loop(lambda: "no answer" in caplog.text)
    world.error = Forbidden("apiservices is forbidden")

    await eventually_in_loop(lambda: "lacks a right: apiservices is forbidden" in caplog.text)
    assert world.live is not None

    world.error = None
    reads = world.reads
    await eventually_in_loop(lambda: world.reads >= reads + 2)
    world.now += AWAY_SECONDS
    await eventually_in_loop(lambda: world.live is None)
    assert caplog.text.count("lacks a right") == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("url", "service"),
    [
        ("http://m.llm.svc:8081", ("llm", "m")),
        ("http://m.llm.svc.cluster.local:8081", ("llm", "m")),
        ("http://metrics:8081", None),
        (None, None),
    ],
)
def test_the_service_object_of_the_metrics_server_follows_from_its_address(
    url: str | None, service: tuple[str, str] | None
) -> None:
    assert OperatorSettings(metrics_server_url=url).metrics_service == service

"""Tests that two releases of the operator notice that they serve the same services."""

from datetime import datetime
from typing import Any

import pytest

from llmservice_operator.cluster import Cache
from llmservice_operator.kinds import LLMSERVICES
from llmservice_operator.reconcile import Reconciler
from llmservice_operator.releases import RENEWAL, SHARED_SERVICE
from llmservice_operator.settings import OperatorSettings
from operator_support.reconcile import KEY, RacingCluster, a_reconciler, changed_service
from operator_support.services import NOW

OLD, NEW = "llmservice-system/llmservice-operator", "llmservice-system/second-operator"
"""Two releases in one namespace. Their services have the same content. Releases in two namespaces
write different NetworkPolicies, and FieldConflict reports that."""


class TwoReleases:
    """A cluster with one service, and releases of the operator that write the same content."""

    def __init__(self) -> None:
        self.cluster, self.now = RacingCluster(), NOW
        self.releases: dict[str, tuple[Cache, Reconciler]] = {}
        self.cluster.put(changed_service(self.cluster, KEY[1], {}))

    def start(self, *releases: str) -> None:
        """Start a release, or restart it."""
        for release in releases:
            namespace, name = release.split("/")
            settings, cache = OperatorSettings(namespace=namespace, lease_name=name), Cache()
            made = a_reconciler(self.cluster, cache, settings, now=self._time)
            self.releases[release] = cache, made

    def stop(self, release: str) -> None:
        del self.releases[release]

    async def settle(self) -> dict[str, float | None]:
        """Run passes of all releases until none writes; return the seconds until the next pass of
        each.
        """
        for _ in range(20):
            before, waits = len(self.cluster.writes), {}
            for release, (cache, reconciler) in self.releases.items():
                for manifest in self.cluster.objects.values():
                    cache.observe(manifest)
                waits[release] = await reconciler.reconcile(KEY)
            if len(self.cluster.writes) == before:
                return waits
        raise AssertionError(f"the releases write without end: {self.cluster.writes}")

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.cluster.objects[LLMSERVICES, KEY[1]]["status"]
        return status

    @property
    def message(self) -> str:
        found = (each for each in self.status["conditions"] if each["type"] == "Progressing")
        message: str = next(found)["message"]
        return message

    def _time(self) -> datetime:
        return self.now


@pytest.fixture
def world() -> TwoReleases:
    return TwoReleases()


async def test_a_release_that_is_alone_lists_itself_and_says_nothing(world: TwoReleases) -> None:
    world.start(OLD)
    assert await world.settle() == {OLD: None}
    assert world.status["operators"] == [OLD]
    assert "Several releases" not in world.message


async def test_two_releases_that_write_the_same_are_named_in_the_status(
    world: TwoReleases, caplog: pytest.LogCaptureFixture
) -> None:
    world.start(OLD)
    await world.settle()
    world.start(NEW)
    assert await world.settle() == {OLD: RENEWAL.total_seconds(), NEW: RENEWAL.total_seconds()}
    assert world.status["operators"] == [OLD, NEW]
    assert f"Several releases of the operator serve this namespace: {OLD}, {NEW}" in world.message
    assert "watchNamespaces" in world.message
    # Each of them says it once in its log.
    assert caplog.text.count("Several releases") == 2
    world.now += RENEWAL
    await world.settle()
    assert world.status["operators"] == [OLD, NEW]
    assert caplog.text.count("Several releases") == 2


async def test_a_release_that_replaces_another_one_is_not_reported(
    world: TwoReleases, caplog: pytest.LogCaptureFixture
) -> None:
    world.start(OLD)
    await world.settle()
    world.stop(OLD)
    world.start(NEW)
    await world.settle()
    assert world.status["operators"] == [NEW]
    assert "Several releases" not in caplog.text


@pytest.mark.parametrize(("ends", "stays"), [(OLD, NEW), (NEW, OLD)])
async def test_a_release_that_ended_disappears_after_the_renewal(
    world: TwoReleases, ends: str, stays: str
) -> None:
    world.start(OLD, NEW)
    await world.settle()
    world.stop(ends)
    world.now += RENEWAL / 2
    await world.settle()
    assert world.status["operators"] == [OLD, NEW]
    world.now += RENEWAL / 2
    assert await world.settle() == {stays: None}
    assert world.status["operators"] == [stays]
    assert "Several releases" not in world.message


async def test_a_restart_of_one_of_two_releases_hides_neither(world: TwoReleases) -> None:
    world.start(OLD, NEW)
    await world.settle()
    world.start(NEW)
    await world.settle()
    world.now += RENEWAL
    await world.settle()
    assert world.status["operators"] == [OLD, NEW]


async def test_no_list_that_another_client_writes_stops_a_pass(world: TwoReleases) -> None:
    world.start(OLD)
    await world.settle()
    live = world.cluster.objects[LLMSERVICES, KEY[1]]
    strangers = [f"a/{number}" for number in range(4)]
    world.cluster.put({**live, "status": {**live["status"], "operators": strangers}})
    await world.settle()
    world.now += RENEWAL
    await world.settle()
    assert len(world.status["operators"]) <= 4


async def test_an_event_says_which_releases_serve_a_service(
    world: TwoReleases, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, str]] = []

    async def record(_: Any, body: Any, type_: str, reason: str, message: str) -> None:
        said.append((reason, message))

    monkeypatch.setattr("llmservice_operator.cluster.EventRecorder.record", record)
    world.start(OLD, NEW)
    await world.settle()
    (message,) = (message for reason, message in said if reason == SHARED_SERVICE)
    assert f"{OLD}, {NEW}" in message

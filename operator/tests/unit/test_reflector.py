"""Tests that the cache stays right, whatever happens to the watches and the cluster."""

from typing import Any

import pytest

from llmservice_operator.cluster import reflector
from llmservice_operator.cluster.watching import DELETED, LISTED
from llmservice_operator.errors import ClusterError, Forbidden
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES, SCALED_OBJECTS, Kind
from operator_support.reflecting import LLAMA, REQUIRED, World, service
from shared_support.waiting import eventually_in_loop

OUTDATED = (
    "the cluster cannot be read: the list is older than what was read before: see that all API"
    " servers use one etcd"
)


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "WAIT_FOR_CLUSTER_SECONDS", 0.01)
    monkeypatch.setattr(reflector, "RESTART_BACKOFF_SECONDS", (0.01,))
    monkeypatch.setattr(reflector, "DISCOVERY_PERIOD_SECONDS", 0.01)
    monkeypatch.setattr(reflector, "AUDIT_GRACE_SECONDS", 0.01)


async def test_an_event_enqueues_its_service_and_its_echo_does_not() -> None:
    world = World()
    async with world.reflecting():
        await world.until_watching()
        world.tell("ADDED", service(version=1))
        world.tell("MODIFIED", service(version=1))
        assert world.enqueued == [LLAMA]
        world.tell("MODIFIED", service(version=2))
        world.tell(DELETED, service(version=3))
        assert world.enqueued == [LLAMA] * 3
    assert world.counted == ["event of llmservices"] * 4


async def test_an_object_without_a_service_enqueues_nothing() -> None:
    world = World()
    stranger = {"apiVersion": DEPLOYMENTS.api_version, "kind": DEPLOYMENTS.kind}
    async with world.reflecting():
        await world.until_watching()
        world.tell("ADDED", {**service(), **stranger})
    assert world.enqueued == []


async def test_watches_that_break_are_reported_and_started_again_on_a_cache_that_is_right() -> None:
    world = World({LLMSERVICES: [service("kept"), service("gone")]})
    async with world.reflecting():
        await world.until_watching()
        assert world.known() == {"kept", "gone"}
        world.objects[LLMSERVICES] = [service("kept"), service("new")]
        world.broken.set()
        await world.until_watching(2)
        assert world.known() == {"kept", "new"}
    assert ("team", "gone") in world.enqueued
    assert world.problems == [None, "the watches have stopped and are being restarted", None]
    assert "restart" in world.counted


@pytest.mark.parametrize("type_", ["MODIFIED", DELETED])
async def test_a_list_that_is_older_than_the_last_event_is_not_believed(type_: str) -> None:
    world = World({LLMSERVICES: [service(version=5)]})
    async with world.reflecting():
        await world.until_watching()
        world.outdated = dict(world.objects)
        world.objects = {LLMSERVICES: [] if type_ == DELETED else [service(version=7)]}
        world.tell(type_, service(version=7))
        enqueued = list(world.enqueued)
        world.broken.set()
        await eventually_in_loop(lambda: world.problems.count(OUTDATED) > 1)
        assert list(world.cache.of_kind(LLMSERVICES)) == world.objects[LLMSERVICES]
        assert world.enqueued == enqueued
        world.outdated = {}
        await world.until_watching(2)
        assert list(world.cache.of_kind(LLMSERVICES)) == world.objects[LLMSERVICES]
    assert world.problems[-1] is None


async def test_a_restored_cluster_is_believed_although_it_changes_while_it_is_listed() -> None:
    world = World({LLMSERVICES: [service("gone", version=50), service("kept", version=60)]})
    async with world.reflecting():
        await world.until_watching()
        world.outdated = {LLMSERVICES: [service("gone", version=5), service("kept", version=6)]}
        world.objects = {LLMSERVICES: [service("kept", version=9)]}
        world.broken.set()
        await world.until_watching(2)
        assert list(world.cache.of_kind(LLMSERVICES)) == world.outdated[LLMSERVICES]
    assert world.problems[-1] is None


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        pytest.param(
            LLMSERVICES,
            "the cluster does not know LLMService of llmservice.dev/v1alpha1: apply"
            " crds/llmservice.yaml or install the chart with crds.install=true",
            id="the CRD",
        ),
        pytest.param(
            DEPLOYMENTS,
            "the cluster does not know Deployment of apps/v1: the process cannot work without it",
            id="another kind",
        ),
    ],
)
async def test_a_kind_that_is_not_served_is_named(missing: Kind, problem: str) -> None:
    world = World()
    world.served.remove(missing)
    async with world.reflecting():
        await eventually_in_loop(lambda: len(world.problems) > 2)
        assert world.watches == []
        world.served.add(missing)
        await world.until_watching()
    assert set(world.problems[:-1]) == {problem}
    assert world.problems[-1] is None


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        pytest.param(
            Forbidden("list pods: 403: no"),
            "a right is missing, grant it to the operator's service account: list pods: 403: no",
            id="a missing right",
        ),
        pytest.param(
            ClusterError("no answer"), "the cluster cannot be read: no answer", id="an outage"
        ),
    ],
)
async def test_a_cluster_that_cannot_be_read_is_reported_until_it_can(
    error: ClusterError, problem: str
) -> None:
    world = World({LLMSERVICES: [service()]}, error=error)
    async with world.reflecting():
        await eventually_in_loop(lambda: len(world.problems) > 2)
        world.error = None
        await world.until_watching()
        assert world.known() == {"llama"}
    assert set(world.problems[:-1]) == {problem}


async def test_an_optional_kind_is_watched_once_it_is_served_and_only_as_long() -> None:
    world = World()
    async with world.reflecting():
        await world.until_watching()
        world.served.add(SCALED_OBJECTS)
        await world.until_watching(2)
        world.served.remove(SCALED_OBJECTS)
        await world.until_watching(3)
    assert world.watches == [REQUIRED, (*REQUIRED, SCALED_OBJECTS), REQUIRED]
    # A planned restart of the watches is neither a problem nor a failure.
    assert set(world.problems) == {None}
    assert "restart" not in world.counted


async def test_a_deletion_that_no_watch_saw_is_found_after_the_next_list() -> None:
    world = World({LLMSERVICES: [service("kept"), service("gone")]})
    async with world.reflecting():
        await world.until_watching()
        world.objects[LLMSERVICES] = [service("kept")]
        world.tell(LISTED, service("kept"))
        await eventually_in_loop(lambda: world.known() == {"kept"})
    assert world.watches == [REQUIRED]
    assert "missed llmservices" in world.counted


async def test_watches_that_keep_missing_events_are_restarted() -> None:
    world = World({LLMSERVICES: [service()]})
    async with world.reflecting(audit_seconds=0.02):
        await world.until_watching()
        for version in range(2, 1000):
            world.objects[LLMSERVICES] = [service(version=version)]
            missed = world.counted.count("missed llmservices")
            await eventually_in_loop(
                lambda missed=missed: (  # type: ignore[misc]
                    len(world.watches) > 1 or world.counted.count("missed llmservices") > missed
                )
            )
            if len(world.watches) > 1:
                break
    assert "restart" in world.counted


async def test_one_missed_event_is_repaired_without_a_restart() -> None:
    world = World({LLMSERVICES: [service()]})
    async with world.reflecting(audit_seconds=0.02):
        await world.until_watching()
        world.objects[LLMSERVICES] = [service(version=2)]
        await eventually_in_loop(lambda: "missed llmservices" in world.counted)
        lists = world.lists
        await eventually_in_loop(lambda: world.lists > lists + 8)
    assert world.watches == [REQUIRED]
    assert world.enqueued[-1] == LLAMA


async def test_an_object_that_makes_no_sense_is_not_counted_as_missed_by_any_audit() -> None:
    world = World({LLMSERVICES: [service("kept"), service("broken", labels=7)]})
    async with world.reflecting(audit_seconds=0.02):
        await world.until_watching()
        enqueued, lists = list(world.enqueued), world.lists
        await eventually_in_loop(lambda: world.lists > lists + 8)
        assert world.known() == {"kept"}
        assert world.counted == []
        assert world.enqueued == enqueued
        world.objects[LLMSERVICES] = [service("kept"), service("broken", version=2)]
        await eventually_in_loop(lambda: world.known() == {"kept", "broken"})
    assert world.counted == ["missed llmservices"]


async def test_an_object_that_makes_no_sense_is_read_by_one_audit_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, reads = World({LLMSERVICES: [service("kept"), service("broken", labels=7)]}), list[str]()
    read = world.read

    async def recorded(kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        reads.append(name)
        return await read(kind, namespace, name)

    monkeypatch.setattr(world, "read", recorded)
    async with world.reflecting(audit_seconds=0.02):
        await world.until_watching()
        lists = world.lists
        await eventually_in_loop(lambda: world.lists > lists + 8)

    assert reads == ["broken"]

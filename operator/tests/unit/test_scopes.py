"""Tests that loads, watches and audits are independent for each kind and namespace."""

import asyncio
from typing import Any, cast

import pytest

from llmservice_operator.cluster import Audit, Cluster, ServedKinds, reflector
from llmservice_operator.cluster.audit import OBJECTS_AT_ONCE
from llmservice_operator.errors import ClusterError, Forbidden
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES
from operator_support.reflecting import REQUIRED, World, service
from shared_support.waiting import PATIENCE, eventually_in_loop

GONE = Forbidden(
    'llmservices is forbidden: User "operator" cannot list resource "llmservices"', 403
)
BROKEN = ClusterError("GET: 500: unable to decode the object in storage", 500)
HTML = ClusterError("GET: the answer is not one of the API server", 0)


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "WAIT_FOR_CLUSTER_SECONDS", 0.01)
    monkeypatch.setattr(reflector, "RESTART_BACKOFF_SECONDS", (0.01,))
    monkeypatch.setattr(reflector, "DISCOVERY_PERIOD_SECONDS", 0.01)
    monkeypatch.setattr(reflector, "AUDIT_GRACE_SECONDS", 0.01)
    monkeypatch.setattr(reflector, "LONGEST_RETRY_SECONDS", 0.02)


def two_namespaces() -> World:
    return World(
        {LLMSERVICES: [service("mine", namespace="a"), service("theirs", namespace="b")]},
        namespaces=("a", "b"),
    )


async def test_a_namespace_that_is_gone_keeps_no_other_from_being_served() -> None:
    world = two_namespaces()
    world.errors = {(kind, "b"): GONE for kind in REQUIRED}
    async with world.reflecting():
        await world.until_watching()
        assert world.known() == {"mine"}
        assert ("a", "mine") in world.enqueued
        assert world.problems == [None]
        told = world.hindrances[-1]
        assert told is not None
        assert "llmservices of b cannot be listed" in told
        assert "remove b from watchNamespaces if it is gone" in told
        assert "deployments of b cannot be listed" in told
        assert " of a " not in told

        world.errors.clear()
        await eventually_in_loop(lambda: world.known() == {"mine", "theirs"})
        await eventually_in_loop(lambda: world.hindrances[-1] is None)
        assert ("b", "theirs") in world.enqueued
    assert world.watches == [REQUIRED]


@pytest.mark.parametrize("error", [GONE, BROKEN, HTML], ids=["forbidden", "broken", "html"])
async def test_a_kind_that_cannot_be_listed_keeps_no_other_from_being_loaded(
    error: ClusterError,
) -> None:
    world = two_namespaces()
    world.errors = {(DEPLOYMENTS, "a"): error}
    async with world.reflecting():
        await world.until_watching()
        assert world.known() == {"mine", "theirs"}
        assert world.problems[-1] is None
        told = world.hindrances[-1]
        assert told is not None
        assert told.startswith("deployments of a cannot be listed")
        assert str(error) in told


async def test_an_error_that_may_soon_end_is_waited_for_first() -> None:
    world = two_namespaces()
    world.errors = {(DEPLOYMENTS, "a"): BROKEN}
    async with world.reflecting():
        await eventually_in_loop(lambda: len(world.problems) > 0)
        assert world.problems[0] == f"the cluster cannot be read: {BROKEN}"
        world.errors.clear()
        await world.until_watching()
    assert len(world.problems) <= reflector.PATIENT_ATTEMPTS + 1
    assert set(world.hindrances) == {None}


async def test_nothing_starts_while_no_llmservice_can_be_read() -> None:
    world = two_namespaces()
    world.errors = {(LLMSERVICES, "a"): GONE, (LLMSERVICES, "b"): GONE}
    async with world.reflecting():
        await eventually_in_loop(lambda: len(world.problems) > 2 * reflector.PATIENT_ATTEMPTS)
        assert world.watches == []
    assert set(world.problems) == {
        f"a right is missing, grant it to the operator's service account: {GONE}"
    }


async def test_without_a_kind_in_every_namespace_the_rest_continues_and_nothing_is_ready() -> None:
    world = two_namespaces()
    world.errors = {(DEPLOYMENTS, "a"): GONE, (DEPLOYMENTS, "b"): GONE}
    async with world.reflecting():
        await world.until_watching()
        assert world.known() == {"mine", "theirs"}
        assert world.problems == [
            f"a right is missing, grant it to the operator's service account: {GONE}"
        ]
        world.errors.clear()
        await eventually_in_loop(lambda: world.problems[-1] is None)
        await eventually_in_loop(lambda: world.hindrances[-1] is None)


async def test_what_was_known_of_a_namespace_is_kept_while_it_cannot_be_listed() -> None:
    world = two_namespaces()
    async with world.reflecting():
        await world.until_watching()
        world.errors = {(LLMSERVICES, "b"): BROKEN}
        world.objects[LLMSERVICES] = [service("mine", 9, namespace="a")]
        world.broken.set()
        await world.until_watching(2)
        assert world.known() == {"mine", "theirs"}
        versions = {
            it["metadata"]["name"]: it["metadata"]["resourceVersion"]
            for it in world.cache.of_kind(LLMSERVICES)
        }
        assert versions == {"mine": "9", "theirs": "1"}


async def test_an_audit_that_fails_in_one_namespace_repairs_the_others() -> None:
    world = two_namespaces()
    async with world.reflecting(audit_seconds=0.02):
        await world.until_watching()
        world.errors = {(kind, "b"): GONE for kind in REQUIRED}
        world.objects[LLMSERVICES] = [service("mine", 2, namespace="a")]
        await eventually_in_loop(lambda: "missed llmservices" in world.counted)
        await eventually_in_loop(lambda: world.hindrances[-1] is not None)
        assert world.known() == {"mine", "theirs"}
    assert world.watches == [REQUIRED]


async def test_a_watch_that_is_refused_is_reported_although_its_kind_can_be_listed() -> None:
    world = two_namespaces()
    async with world.reflecting():
        await world.until_watching()
        world.on_trouble("/api/v1/namespaces/b/pods", "403: cannot watch")
        assert world.hindrances[-1] == (
            "nothing can be watched at /api/v1/namespaces/b/pods: 403: cannot watch"
        )
        world.on_trouble("/api/v1/namespaces/b/pods", None)
        assert world.hindrances[-1] is None
    assert set(world.problems) == {None}


async def test_a_kind_that_stays_broken_keeps_no_other_from_being_tried_again() -> None:
    world = two_namespaces()
    world.errors = {(LLMSERVICES, "b"): BROKEN, (DEPLOYMENTS, "b"): GONE}
    async with world.reflecting():
        await world.until_watching()
        del world.errors[DEPLOYMENTS, "b"]
        await eventually_in_loop(lambda: "deployments" not in str(world.hindrances[-1]))
        assert "llmservices of b cannot be listed" in str(world.hindrances[-1])


async def test_what_an_audit_can_list_again_was_not_missed_by_the_watches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reflector, "DISCOVERY_PERIOD_SECONDS", 1000.0)
    world = two_namespaces()
    world.errors = {(kind, "b"): GONE for kind in REQUIRED}
    async with world.reflecting(audit_seconds=0.02):
        await world.until_watching()
        world.errors.clear()
        await eventually_in_loop(lambda: world.known() == {"mine", "theirs"})
        await eventually_in_loop(lambda: world.hindrances[-1] is None)
        assert ("b", "theirs") in world.enqueued
    assert "missed llmservices" not in world.counted


async def test_many_problems_are_reported_in_a_short_message() -> None:
    namespaces = tuple(f"n{number}" for number in range(20))
    world = World({LLMSERVICES: [service("mine", namespace="n0")]}, namespaces=namespaces)
    world.errors = {(DEPLOYMENTS, namespace): GONE for namespace in namespaces[1:]}
    async with world.reflecting():
        await world.until_watching()
        told = world.hindrances[-1]
    assert told is not None
    assert told.endswith(f"and {19 - reflector.TROUBLES_TOLD} more")


async def test_an_unreadable_object_breaks_no_load_no_event_and_no_audit() -> None:
    bad = service("bad", labels={"a": 1})
    world = World({LLMSERVICES: [bad, service("good")]})
    async with world.reflecting(audit_seconds=0.02):
        await world.until_watching()
        assert world.known() == {"good"}
        world.tell("MODIFIED", service("bad", 2, ownerReferences=["text"]))
        world.objects[LLMSERVICES] = [bad, service("good", 2)]
        world.tell("MODIFIED", service("good", 2))
        lists = world.lists
        await eventually_in_loop(lambda: world.lists > lists + 8)
        assert world.known() == {"good"}
    assert set(world.problems) == {None}
    assert world.cache.count_unreadable(LLMSERVICES) == 1


@pytest.mark.parametrize("answer", [{"metadata": {}}, {**service(), "metadata": {"uid": "a"}}])
async def test_an_answer_that_is_no_object_ends_neither_an_audit_nor_a_reload(
    answer: dict[str, Any],
) -> None:
    async def read(*_: object) -> dict[str, Any]:
        return answer

    world = World({LLMSERVICES: [service(version=5)]})
    async with world.reflecting(audit_seconds=0.02):
        await world.until_watching()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(world, "read", read)
            world.objects[LLMSERVICES] = [service(version=6)]
            lists = world.lists
            await eventually_in_loop(lambda: world.lists > lists + 8)
            world.outdated[LLMSERVICES] = [service(version=4)]
            world.broken.set()
            await eventually_in_loop(
                lambda: any("older than what was read" in str(each) for each in world.problems)
            )
        world.outdated.clear()
        await eventually_in_loop(
            lambda: world.cache.service(("team", "llama")) == service(version=6)
        )


async def test_an_object_that_changes_its_owner_enqueues_both_services() -> None:
    world = World()

    def a_pod_of(name: str, version: int) -> dict[str, object]:
        labels = {"llmservice.dev/name": name}
        pod = service("pod", version, labels=labels)
        return {**pod, "apiVersion": "apps/v1", "kind": "Deployment"}

    async with world.reflecting():
        await world.until_watching()
        world.tell("ADDED", a_pod_of("one", 1))
        world.tell("MODIFIED", a_pod_of("two", 2))
    assert world.enqueued == [("team", "one"), ("team", "one"), ("team", "two")] or (
        world.enqueued == [("team", "one"), ("team", "two"), ("team", "one")]
    )


async def test_a_restored_backup_replaces_what_is_known_whatever_the_versions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World({LLMSERVICES: [service("kept", 900), service("gone", 901)]})
    async with world.reflecting(audit_seconds=0.02):
        await world.until_watching()
        world.tell("DELETED", service("back", 902))
        world.objects[LLMSERVICES] = [service("kept", 5), service("back", 6)]
        await world.until_watching(2)
        versions = {
            it["metadata"]["name"]: it["metadata"]["resourceVersion"]
            for it in world.cache.of_kind(LLMSERVICES)
        }
        assert versions == {"kept": "5", "back": "6"}
    # The first audit notices it. Without this, the second audit would take it for missed events.
    assert "the cluster is in an earlier state than before" in caplog.text


async def test_a_reload_keeps_what_came_while_the_list_was_under_way() -> None:
    world = World({LLMSERVICES: [service("old", 5), service("dropped", 5)]})
    async with world.reflecting():
        await world.until_watching()
        snapshot = world.cache.snapshot(LLMSERVICES, None)
        world.cache.observe(service("old", 7))
        world.cache.observe(service("new", 8))
        world.cache.drop(service("dropped", 9))
        world.cache.replace(snapshot, [service("old", 6), service("dropped", 6)])
        versions = {
            it["metadata"]["name"]: it["metadata"]["resourceVersion"]
            for it in world.cache.of_kind(LLMSERVICES)
        }
    assert versions == {"old": "7", "new": "8"}


async def test_other_tasks_run_while_a_long_list_is_read() -> None:
    number = 10 * OBJECTS_AT_ONCE
    world = World({LLMSERVICES: [service(f"llama-{index}") for index in range(number)]})
    served = ServedKinds(cast(Cluster, world), [None], REQUIRED, {})
    audit = Audit(cast(Cluster, world), world.cache, served, [None], world.enqueued.append, print)
    loop, turns = asyncio.get_running_loop(), 0

    def count() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(count)

    loop.call_soon(count)
    await audit.reload()
    assert world.cache.count(LLMSERVICES) == number
    assert turns >= number / OBJECTS_AT_ONCE


async def test_a_change_in_flight_during_an_audit_is_no_missed_event() -> None:
    world = World({LLMSERVICES: [service(version=2)]})
    world.cache.observe(service(version=1))
    served = ServedKinds(cast(Cluster, world), [None], REQUIRED, {})
    audit = Audit(
        cast(Cluster, world),
        world.cache,
        served,
        [None],
        world.enqueued.append,
        world.cache_diverged,
    )
    suspects = await audit.suspects()
    assert suspects == [(LLMSERVICES, "team", "llama")]
    # The event of the second version arrives, and the object gets its third version before the
    # audit checks it again.
    world.cache.observe(service(version=2))
    world.objects[LLMSERVICES] = [service(version=3)]
    assert await audit.repair(suspects) == 0
    assert world.counted == []
    # If no event has arrived, the watch is dead, even if the object has changed again.
    suspects = await audit.suspects()
    world.objects[LLMSERVICES] = [service(version=4)]
    assert await audit.repair(suspects) == 1
    assert world.counted == ["missed llmservices"]


async def test_healthy_watches_that_break_are_back_after_the_shortest_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The second pause is longer than the test waits, so the test fails if it is taken.
    monkeypatch.setattr(reflector, "RESTART_BACKOFF_SECONDS", (0.01, 10 * PATIENCE))
    monkeypatch.setattr(reflector, "HEALTHY_AFTER_SECONDS", 0.0)
    world = World()
    async with world.reflecting():
        for times in range(1, 5):
            await world.until_watching(times)
            world.broken.set()
        await world.until_watching(5)

"""Tests the kinds that the operator works with: required ones, and optional ones if served."""

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from llmservice_operator.children import REQUIRED_KINDS, optional_kinds
from llmservice_operator.cluster import Audit, Cache, Cluster, Key, ServedKinds
from llmservice_operator.errors import Forbidden, NotFound, NotServed
from llmservice_operator.kinds import AUTOSCALERS, LLMSERVICES, SCALED_OBJECTS, Kind
from llmservice_operator.settings import OperatorSettings
from operator_support.reconcile import RacingCluster
from operator_support.reflecting import versions_of

KEDA = OperatorSettings(keda=True)


class CountingCluster(RacingCluster):
    """Records the requests, and may refuse to list a kind."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None

    async def list_resources(self, discovery_path: str) -> frozenset[str]:
        self.asked.append(discovery_path)
        self.meanwhile()
        return await super().list_resources(discovery_path)

    async def list_all(
        self, kind: Kind, namespace: str | None, limit: int = 500
    ) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(kind.plural)
        self.meanwhile()
        if kind in self.refusals:
            raise self.refusals[kind]
        async for manifest in super().list_all(kind, namespace, limit):
            yield manifest

    def list_versions(
        self, kind: Kind, namespace: str | None
    ) -> AsyncIterator[dict[tuple[str, str], int]]:
        return versions_of(self.list_all(kind, namespace))


@pytest.fixture
def cluster() -> CountingCluster:
    return CountingCluster()


def served_kinds(cluster: CountingCluster, settings: OperatorSettings) -> ServedKinds:
    """Return the required kinds and ScaledObject, whatever other kinds are optional."""
    optional = {SCALED_OBJECTS: optional_kinds(settings)[SCALED_OBJECTS]}
    return ServedKinds(cast(Cluster, cluster), [None], REQUIRED_KINDS, optional)


def an_object(kind: Kind) -> dict[str, Any]:
    metadata = {
        "name": "llama",
        "namespace": "team",
        "uid": "1",
        "resourceVersion": "1",
        "labels": {"llmservice.dev/name": "llama"},
    }
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}


async def test_an_optional_kind_is_watched_as_soon_as_it_is_served_and_no_longer(
    cluster: CountingCluster,
) -> None:
    served = served_kinds(cluster, KEDA)
    cluster.unserved = {SCALED_OBJECTS}
    await served.load()
    assert served.watched == REQUIRED_KINDS
    assert SCALED_OBJECTS not in served
    assert not await served.refresh()

    cluster.unserved = set()
    assert await served.refresh()
    assert served.watched == (*REQUIRED_KINDS, SCALED_OBJECTS)
    assert SCALED_OBJECTS in served
    assert not await served.refresh()

    cluster.unserved = {SCALED_OBJECTS}
    assert await served.refresh()
    assert served.watched == REQUIRED_KINDS


async def test_a_discovered_kind_stays_known_during_the_next_discovery(
    cluster: CountingCluster,
) -> None:
    served = served_kinds(cluster, KEDA)
    await served.load()
    seen = []
    cluster.meanwhile = lambda: seen.append(SCALED_OBJECTS in served)
    await served.load()
    assert all(seen)
    assert len(seen) == len(cluster.asked) / 2


async def test_the_discovery_of_a_watched_kind_takes_one_request(
    cluster: CountingCluster,
) -> None:
    served = served_kinds(cluster, KEDA)
    await served.load()
    cluster.asked.clear()
    await served.refresh()
    assert cluster.asked == [SCALED_OBJECTS.discovery_path]


async def test_a_kind_that_was_not_granted_is_never_requested(cluster: CountingCluster) -> None:
    served = served_kinds(cluster, OperatorSettings(keda=False))
    await served.load()
    assert SCALED_OBJECTS not in served
    assert SCALED_OBJECTS in served.forbidden
    assert not {SCALED_OBJECTS.discovery_path, SCALED_OBJECTS.plural} & set(cluster.asked)


async def test_a_missing_right_on_an_optional_kind_hinders_nothing_else_and_is_logged_once(
    cluster: CountingCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.refusals[SCALED_OBJECTS] = Forbidden("cannot list scaledobjects", 403)
    served = served_kinds(cluster, KEDA)
    await served.load()
    await served.refresh()
    assert served.watched == REQUIRED_KINDS
    assert SCALED_OBJECTS in served.forbidden
    assert caplog.text.count("scaledobjects are not used: a right is missing") == 1

    del cluster.refusals[SCALED_OBJECTS]
    assert await served.refresh()
    assert SCALED_OBJECTS in served
    assert SCALED_OBJECTS not in served.forbidden


async def test_a_kind_that_vanishes_between_discovery_and_list_is_absent(
    cluster: CountingCluster,
) -> None:
    cluster.refusals[SCALED_OBJECTS] = NotFound("the server could not find it", 404)
    served = served_kinds(cluster, KEDA)
    await served.load()
    assert served.watched == REQUIRED_KINDS


@pytest.mark.parametrize("kind", [LLMSERVICES, AUTOSCALERS], ids=lambda kind: kind.kind)
async def test_a_required_kind_that_is_not_served_is_named(
    cluster: CountingCluster, kind: Kind
) -> None:
    cluster.unserved = {kind}
    with pytest.raises(NotServed, match=f"does not know {kind.kind} of {kind.api_version}"):
        await served_kinds(cluster, KEDA).load()


@pytest.fixture
def enqueued() -> list[Key]:
    return []


def an_audit(cluster: CountingCluster, cache: Cache, enqueued: list[Key]) -> Audit:
    typed, served = cast(Cluster, cluster), served_kinds(cluster, KEDA)
    return Audit(typed, cache, served, [None], enqueued.append, lambda _: None)


async def test_objects_of_a_kind_that_is_gone_are_forgotten_and_their_services_enqueued(
    cluster: CountingCluster, enqueued: list[Key]
) -> None:
    cache = Cache()
    cluster.put(an_object(SCALED_OBJECTS))
    audit = an_audit(cluster, cache, enqueued)
    await audit.reload()
    assert cache.count(SCALED_OBJECTS) == 1

    enqueued.clear()
    cluster.unserved = {SCALED_OBJECTS}
    await audit.reload()
    assert cache.count(SCALED_OBJECTS) == 0
    assert enqueued == [("team", "llama")]


async def test_every_service_is_enqueued_when_another_kind_is_served(
    cluster: CountingCluster, enqueued: list[Key]
) -> None:
    cluster.put(an_object(LLMSERVICES))
    cluster.unserved = {SCALED_OBJECTS}
    audit = an_audit(cluster, Cache(), enqueued)
    await audit.reload()
    enqueued.clear()
    await audit.reload()
    assert enqueued == []

    cluster.unserved = set()
    await audit.reload()
    assert enqueued == [("team", "llama")]


async def test_an_optional_kind_that_is_removed_during_an_audit_has_no_objects(
    cluster: CountingCluster, enqueued: list[Key]
) -> None:
    cache = Cache()
    cluster.put(an_object(SCALED_OBJECTS))
    audit = an_audit(cluster, cache, enqueued)
    await audit.reload()
    cluster.objects.clear()
    cluster.refusals[SCALED_OBJECTS] = NotFound("the server could not find it", 404)
    suspects = await audit.suspects()
    assert suspects == [(SCALED_OBJECTS, "team", "llama")]
    assert await audit.repair(suspects) == 1
    assert cache.count(SCALED_OBJECTS) == 0

    cluster.refusals[AUTOSCALERS] = NotFound("the server could not find it", 404)
    with pytest.raises(NotServed, match="HorizontalPodAutoscaler of autoscaling/v2"):
        await audit.suspects()

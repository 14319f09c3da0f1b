from datetime import UTC, datetime
from typing import Any, cast

import pytest

from llmservice_operator.cluster import (
    DEPLOYMENTS,
    LLMSERVICES,
    Cache,
    Cluster,
    EventRecorder,
    Kind,
    kind_of,
)
from llmservice_operator.reconcile import Reconciler
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.telemetry import Metrics

KEY = ("team", "llama")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class RacingCluster:
    """Stores what is applied; another client may change an object just before a write lands."""

    def __init__(self) -> None:
        self.objects: dict[tuple[Kind, str], dict[str, Any]] = {}
        self.writes: list[str] = []
        self.changes: dict[str, dict[str, Any]] = {}
        """Spec that somebody else writes right before our next write to the kind."""

    def put(self, manifest: dict[str, Any]) -> dict[str, Any]:
        kind, metadata = kind_of(manifest), manifest["metadata"]
        version = str(100 + len(self.writes))
        stored = {
            **manifest,
            "metadata": {"uid": metadata["name"], **metadata, "resourceVersion": version},
        }
        self.objects[kind, metadata["name"]] = stored
        return stored

    async def read(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        return self.objects.get((kind, name))

    async def apply(self, manifest: dict[str, Any], uid: str | None = None) -> dict[str, Any]:
        self.writes.append(manifest["kind"])
        return self.put(manifest)

    async def apply_status(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.writes.append("status")
        live = self.objects[LLMSERVICES, manifest["metadata"]["name"]]
        if spec := self.changes.pop("LLMService", None):
            generation = live["metadata"]["generation"] + 1
            live = {
                **live,
                "spec": spec,
                "metadata": {**live["metadata"], "generation": generation},
            }
        return self.put({**live, "status": manifest["status"]})

    async def write(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


@pytest.fixture
def cluster() -> RacingCluster:
    return RacingCluster()


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def reconciler(cluster: RacingCluster, cache: Cache) -> Reconciler:
    racing = cast(Cluster, cluster)
    recorder = EventRecorder(racing, "test", lambda: NOW)
    return Reconciler(racing, cache, recorder, Metrics(), OperatorSettings(), lambda: NOW)


@pytest.fixture
def service(cluster: RacingCluster, cache: Cache) -> dict[str, Any]:
    stored = cluster.put(
        {
            "apiVersion": LLMSERVICES.api_version,
            "kind": LLMSERVICES.kind,
            "metadata": {"name": "llama", "namespace": "team", "generation": 1},
            "spec": {"model": {"uri": "hf://org/model"}, "accelerator": {"type": "cpu"}},
        }
    )
    cache.observe(stored)
    return stored


async def test_a_spec_change_that_came_with_the_answer_of_our_own_write_is_not_lost(
    cluster: RacingCluster, cache: Cache, reconciler: Reconciler, service: dict[str, Any]
) -> None:
    cluster.changes["LLMService"] = {**service["spec"], "replicas": 3}
    # The event of that change will be no news: the answer of the status write already held it.
    assert await reconciler.reconcile(KEY) == 0.0
    assert not cache.observe(cluster.objects[LLMSERVICES, "llama"])

    await reconciler.reconcile(KEY)
    assert cluster.objects[DEPLOYMENTS, "llama"]["spec"]["replicas"] == 3


async def test_nothing_is_made_when_the_watch_has_not_yet_told_of_a_deletion(
    cluster: RacingCluster, reconciler: Reconciler, service: dict[str, Any]
) -> None:
    del cluster.objects[LLMSERVICES, "llama"]
    assert await reconciler.reconcile(KEY) == 2.0
    assert cluster.writes == []


async def test_nothing_is_made_for_a_successor_that_the_watch_has_not_told_of(
    cluster: RacingCluster, reconciler: Reconciler, service: dict[str, Any]
) -> None:
    cluster.put({**service, "metadata": {**service["metadata"], "uid": "successor"}})
    assert await reconciler.reconcile(KEY) == 2.0
    assert cluster.writes == []


async def test_nothing_is_made_while_the_service_is_being_deleted(
    cluster: RacingCluster, cache: Cache, reconciler: Reconciler, service: dict[str, Any]
) -> None:
    deleting = {**service["metadata"], "deletionTimestamp": "now", "resourceVersion": "101"}
    cluster.objects[LLMSERVICES, "llama"] = {**service, "metadata": deleting}
    assert await reconciler.reconcile(KEY) == 2.0
    cache.observe(cluster.objects[LLMSERVICES, "llama"])
    assert await reconciler.reconcile(KEY) is None
    assert cluster.writes == []


async def test_a_service_that_is_gone_needs_no_further_look(reconciler: Reconciler) -> None:
    assert await reconciler.reconcile(("team", "gone")) is None

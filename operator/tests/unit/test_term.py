"""Tests that a new leader reads every LLMService again before its first change."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from llmservice_operator.cluster import Cache, Cluster, Key
from llmservice_operator.cluster.term import Term
from llmservice_operator.errors import ClusterError, Forbidden
from llmservice_operator.kinds import LLMSERVICES, Kind
from llmservice_operator.settings import OperatorSettings
from operator_support.reconcile import RacingCluster, a_reconciler

KEY = ("team", "llama")


class CountingCluster(RacingCluster):
    def __init__(self) -> None:
        super().__init__()
        self.fails: ClusterError | None = None

    async def list_all(
        self, kind: Kind, namespace: str | None, limit: int = 500
    ) -> AsyncIterator[dict[str, Any]]:
        if self.fails is not None:
            raise self.fails
        async for manifest in super().list_all(kind, namespace, limit):
            yield manifest


class World:
    """A standby whose watch of LLMServices died after it had reported a service with 3 replicas."""

    def __init__(self) -> None:
        self.cluster, self.cache = CountingCluster(), Cache()
        self.enqueued: list[Key] = []
        self.term = Term(cast(Cluster, self.cluster), self.cache, [None], self.enqueued.append)
        self.cache.observe(self.write(3))

    def write(self, replicas: int, name: str = "llama") -> dict[str, Any]:
        spec = {"model": {"uri": "hf://org/m"}, "accelerator": {"type": "cpu"}}
        return self.cluster.put(
            {
                "apiVersion": LLMSERVICES.api_version,
                "kind": LLMSERVICES.kind,
                "metadata": {"name": name, "namespace": "team", "generation": replicas},
                "spec": {**spec, "replicas": replicas},
            }
        )

    def replicas(self, name: str = "llama") -> int | None:
        known = self.cache.service(("team", name))
        return None if known is None else known["spec"]["replicas"]


@pytest.fixture
def world() -> World:
    return World()


async def test_one_list_reads_every_service_and_finds_what_the_watch_missed(world: World) -> None:
    world.write(1)
    world.write(2, "other")
    await world.term.begin()
    for name, replicas in (("llama", 1), ("other", 2)):
        await world.term.confirm(("team", name))
        assert world.replicas(name) == replicas
    assert world.cluster.read_kinds.count(LLMSERVICES) == 0
    assert sorted(world.enqueued) == [("team", "llama"), ("team", "other")]


@pytest.mark.parametrize(
    "error", [Forbidden("cannot list", 403), ClusterError("no answer")], ids=["right", "outage"]
)
async def test_services_that_cannot_be_listed_are_read_one_by_one_and_once(
    world: World, error: ClusterError
) -> None:
    world.write(1)
    world.cluster.fails = error
    await world.term.begin()
    assert world.replicas() == 3
    for _ in range(3):
        await world.term.confirm(KEY)
        assert world.replicas() == 1
    assert world.cluster.read_kinds.count(LLMSERVICES) == 1


async def test_a_service_that_was_deleted_while_the_watch_was_dead_is_forgotten(
    world: World,
) -> None:
    del world.cluster.objects[LLMSERVICES, "llama"]
    await world.term.begin()
    await world.term.confirm(KEY)
    assert world.replicas() is None


async def test_a_service_that_was_written_in_this_term_is_not_read_again(world: World) -> None:
    await world.term.begin()
    world.cache.observe(world.write(1, "new"))
    await world.term.confirm(("team", "new"))
    assert world.cluster.read_kinds.count(LLMSERVICES) == 0


async def test_the_first_change_of_a_new_leader_follows_the_present_spec(world: World) -> None:
    world.write(1)
    await world.term.begin()
    reconciler = a_reconciler(world.cluster, world.cache, OperatorSettings())
    await world.term.confirm(KEY)
    await reconciler.reconcile(KEY)
    deployments = [it for it in world.cluster.objects.values() if it["kind"] == "Deployment"]
    assert [it["spec"]["replicas"] for it in deployments] == [1]

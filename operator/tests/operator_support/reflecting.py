"""A cluster in memory, the watches on it, and a reflector that fills a cache."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from llmservice_operator.cluster import Cache, Cluster, Key, Reflector, ServedKinds
from llmservice_operator.cluster.watch_session import OnTrouble
from llmservice_operator.cluster.watching import OnEvent
from llmservice_operator.errors import ClusterError
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES, SCALED_OBJECTS, Kind
from shared_support.waiting import eventually_in_loop

REQUIRED = (LLMSERVICES, DEPLOYMENTS)
LLAMA = ("team", "llama")


def service(
    name: str = "llama", version: int = 1, namespace: str = "team", **metadata: Any
) -> dict[str, Any]:
    metadata = {
        "namespace": namespace,
        "name": name,
        "uid": name,
        "resourceVersion": str(version),
        **metadata,
    }
    return {"apiVersion": LLMSERVICES.api_version, "kind": LLMSERVICES.kind, "metadata": metadata}


async def versions_of(
    listed: AsyncIterator[dict[str, Any]],
) -> AsyncIterator[dict[tuple[str, str], int]]:
    """Yield the version of each listed object, by namespace and name, on a page of its own."""
    async for each in listed:
        metadata = each["metadata"]
        yield {(metadata["namespace"], metadata["name"]): int(metadata["resourceVersion"])}


@dataclass
class World:
    """A cluster in memory, the watches on it, and the results of the reflector."""

    objects: dict[Kind, list[dict[str, Any]]] = field(default_factory=dict)
    served: set[Kind] = field(default_factory=lambda: {*REQUIRED})
    error: ClusterError | None = None
    errors: dict[tuple[Kind, str | None], ClusterError] = field(default_factory=dict)
    """Errors of list requests, by kind and namespace."""
    outdated: dict[Kind, list[dict[str, Any]]] = field(default_factory=dict)
    """Objects that an outdated API server lists instead of the present objects of the kind."""
    namespaces: Sequence[str | None] = (None,)
    hindrances: list[str | None] = field(default_factory=list)
    lists: int = 0
    watches: list[tuple[Kind, ...]] = field(default_factory=list)
    on_event: OnEvent | None = None
    on_trouble: OnTrouble = lambda *_: None
    broken: asyncio.Event = field(default_factory=asyncio.Event)
    cache: Cache = field(default_factory=Cache)
    enqueued: list[Key] = field(default_factory=list)
    problems: list[str | None] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)

    # Methods of the cluster.

    async def list_resources(self, path: str) -> frozenset[str]:
        return frozenset(kind.plural for kind in self.served if kind.discovery_path == path)

    async def list_all(
        self, kind: Kind, namespace: str | None, limit: int = 0
    ) -> AsyncIterator[dict[str, Any]]:
        self.lists += 1
        if self.error is not None:
            raise self.error
        if (kind, namespace) in self.errors:
            raise self.errors[kind, namespace]
        for manifest in self.outdated.get(kind, self.objects.get(kind, [])):
            if namespace in (None, manifest["metadata"]["namespace"]):
                yield manifest

    def list_versions(
        self, kind: Kind, namespace: str | None
    ) -> AsyncIterator[dict[tuple[str, str], int]]:
        return versions_of(self.list_all(kind, namespace))

    async def read(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        found = (it for it in self.objects.get(kind, []) if it["metadata"]["name"] == name)
        return next(found, None)

    # Methods of the watches.

    async def watch(
        self,
        kinds: Sequence[Kind],
        namespaces: Sequence[str | None],
        on_event: OnEvent,
        stop: asyncio.Event,
        on_trouble: OnTrouble,
    ) -> None:
        self.on_trouble = on_trouble
        self.watches.append(tuple(kinds))
        self.on_event = on_event
        self.broken.clear()
        waiting = [asyncio.create_task(it.wait()) for it in (stop, self.broken)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        if self.broken.is_set():
            raise RuntimeError("a watch broke")

    def tell(self, type_: str, manifest: dict[str, Any]) -> None:
        assert self.on_event is not None
        self.on_event(type_, manifest)

    # Methods of the observer.

    def watch_event(self, plural: str) -> None:
        self.counted.append(f"event of {plural}")

    def watches_restarted(self) -> None:
        self.counted.append("restart")

    def cache_diverged(self, plural: str) -> None:
        self.counted.append(f"missed {plural}")

    @asynccontextmanager
    async def reflecting(self, audit_seconds: float = 1000.0) -> AsyncIterator[None]:
        cluster = cast(Cluster, self)
        found = Reflector(
            cluster,
            ServedKinds(cluster, self.namespaces, REQUIRED, {SCALED_OBJECTS: True}),
            self.cache,
            self.namespaces,
            self.enqueued.append,
            self,
            self.problems.append,
            audit_seconds,
            self.watch,
            on_hindrance=self.hindrances.append,
        )
        stop = asyncio.Event()
        running = asyncio.create_task(found.run(stop))
        aside = [asyncio.create_task(it) for it in (found.audit(), found.discover())]
        try:
            yield
        finally:
            stop.set()
            for task in aside:
                task.cancel()
            await asyncio.gather(*aside, return_exceptions=True)
            await asyncio.wait_for(running, 5)

    async def until_watching(self, times: int = 1) -> None:
        await eventually_in_loop(lambda: len(self.watches) >= times)

    def known(self) -> set[str]:
        return {it["metadata"]["name"] for it in self.cache.of_kind(LLMSERVICES)}

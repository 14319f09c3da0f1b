"""The audit lists the objects, and repairs the cache where the watches failed to update it.

An object that vanished while a watch was down causes no event, and a watch may be dead without an
error. So the audit lists all objects periodically, and processes every difference as if its event
had come.
"""

import logging
from collections.abc import Callable, Sequence

from llmservice_operator.api import Manifest
from llmservice_operator.cluster.cache import Cache, Key, ObjectId, object_id, owner_key, version
from llmservice_operator.cluster.client import Cluster
from llmservice_operator.cluster.served import ServedKinds
from llmservice_operator.errors import NotFound, NotServed
from llmservice_operator.kinds import LLMSERVICES, Kind

logger = logging.getLogger(__name__)


class Audit:
    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        served: ServedKinds,
        namespaces: Sequence[str | None],
        enqueue: Callable[[Key], None],
        diverged: Callable[[str], None],
    ) -> None:
        """`diverged` is called with the plural of every object about which the watches were
        wrong.
        """
        self._cluster = cluster
        self._cache = cache
        self._served = served
        self._namespaces = namespaces
        self._enqueue = enqueue
        self._diverged = diverged
        self._watched: tuple[Kind, ...] = ()
        """Kinds of the last reload."""

    async def reload(self) -> None:
        """Make the cache equal to the cluster and enqueue the changes. Call it only while no watch
        runs.

        Raises ClusterError: NotServed when the cluster does not know a required kind, Forbidden
        when a right is missing.
        """
        await self._served.load()
        before, self._watched = self._watched, self._served.watched
        unwatched = self._cache.kinds() - set(self._served.watched)
        for kind in (*self._served.watched, *unwatched):
            listed = {} if kind in unwatched else await self._list(kind)
            gone = [m for m in self._cache.of_kind(kind) if object_id(m) not in listed]
            changed = [m for m in listed.values() if self._cache.observe(m)]
            for manifest in gone:
                self._cache.drop(manifest)
            for owner in map(owner_key, (*gone, *changed)):
                if owner is not None:
                    self._enqueue(owner)
        if before not in ((), self._watched):
            # The children of a service can depend on the served kinds.
            for service in self._cache.of_kind(LLMSERVICES):
                self._enqueue(object_id(service)[1:])

    async def suspects(self) -> list[ObjectId]:
        """List everything and return the differences from the cache.

        The event of a difference may still be on its way. Wait some seconds, then call
        `repair`.
        """
        suspects: list[ObjectId] = []
        for kind in self._served.watched:
            known = [object_id(manifest) for manifest in self._cache.of_kind(kind)]
            listed = await self._list(kind)
            suspects += [id_ for id_, manifest in listed.items() if self._is_newer(manifest)]
            suspects += [id_ for id_ in known if id_ not in listed]
        return suspects

    async def repair(self, suspects: Sequence[ObjectId]) -> int:
        """Update the cache where it still differs, enqueue, and return the number of
        differences.
        """
        repaired = 0
        for id_ in suspects:
            live = await self._cluster.read(*id_)
            known = self._cache.get(*id_)
            if live is None and known is not None:
                self._cache.drop(known)
            elif live is None or not self._cache.observe(live):
                continue
            repaired += 1
            kind, namespace, name = id_
            logger.warning("the watch of %s missed %s/%s", kind.plural, namespace, name)
            self._diverged(kind.plural)
            owner = owner_key(live or known or {})
            if owner is not None:
                self._enqueue(owner)
        return repaired

    async def _list(self, kind: Kind) -> dict[ObjectId, Manifest]:
        try:
            return {
                object_id(manifest): manifest
                for namespace in self._namespaces
                async for manifest in self._cluster.list_all(kind, namespace)
            }
        except NotFound as error:
            if self._served.is_optional(kind):
                # The kind was removed a moment ago, and its objects with it.
                return {}
            raise NotServed(kind.kind, kind.api_version) from error

    def _is_newer(self, manifest: Manifest) -> bool:
        known = self._cache.get(*object_id(manifest))
        return known is None or version(known) < version(manifest)

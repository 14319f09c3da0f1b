"""The audit lists the objects, and repairs the cache where the watches failed to update it.

An object that vanished while a watch was down causes no event, and a watch may stop delivering
events without an error. So the audit lists all objects periodically, and processes every difference
as if an event had reported it.
"""

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from llmservice_operator.api import Manifest
from llmservice_operator.cluster.cache import (
    Cache,
    Key,
    ObjectId,
    Snapshot,
    is_other_version,
    object_id,
    version,
)
from llmservice_operator.cluster.client import Cluster
from llmservice_operator.cluster.foreign import understood
from llmservice_operator.cluster.served import ServedKinds
from llmservice_operator.errors import ClusterError, Forbidden, NotFound, NotServed, Unreadable
from llmservice_operator.kinds import LLMSERVICES, Kind

Scope = tuple[Kind, str | None]
"""A kind and a namespace. None means all namespaces."""

Listed = TypeVar("Listed")

OBJECTS_AT_ONCE = 20
"""Number of listed objects that are reduced before other tasks run. Without these pauses, a page of
a list blocks the event loop for more than 0.1 s."""
READS_OF_OLD = 5
"""A reload that gets an outdated list reads objects of this list by name until it finds one that
still exists. This is the maximum number of these reads."""

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
        """`diverged` is called for each object that the watches missed, with the plural of its
        kind.
        """
        self._cluster = cluster
        self._cache = cache
        self._served = served
        self._namespaces = namespaces
        self._enqueue = enqueue
        self._diverged = diverged
        self.troubles: dict[Scope, ClusterError] = {}
        """Error of each kind and namespace whose last list failed."""
        self.went_back = False
        """True if the state of the cluster is older than the cache. After a restore of the
        cluster's database, resource versions are lower than before, and only a reload corrects the
        cache."""
        self._watched: tuple[Kind, ...] = ()
        """Kinds that the last reload listed."""
        self._suspected: dict[ObjectId, _Suspect] = {}
        self._unreadable: dict[ObjectId, int] = {}
        """Versions of the objects that a repair could not understand. They are not read again."""

    async def reload(self) -> None:
        """Make the cache equal to the cluster, and enqueue the services of all changed objects.

        Call it only while no watch runs.

        A kind that cannot be listed in a namespace keeps its cached objects, and is in `troubles`
        afterwards.

        Raises ClusterError when nothing can be listed, and NotServed when the cluster does not know
        a required kind.
        """
        await self._served.load()
        before, self._watched = self._watched, self._served.watched
        for kind in self._cache.kinds() - set(self._watched):
            # No watch reports objects of this kind any more.
            self._take_over(self._cache.snapshot(kind, None), [])
        scopes = [(kind, each) for kind in self._watched for each in self._namespaces]
        self.troubles = {}
        for scope in scopes:
            await self._load(scope)
        if len(self.troubles) == len(scopes):
            raise self.troubles[scopes[0]]
        if before not in ((), self._watched):
            # The children of a service can depend on the served kinds.
            for service in self._cache.of_kind(LLMSERVICES):
                self._enqueue(object_id(service)[1:])

    async def retry(self) -> bool:
        """Repeat the lists that failed; return whether any of them succeeds now.

        Raises NotServed when the cluster does not know a required kind.
        """
        before, gone = len(self.troubles), set[str | None]()
        for kind, namespace in list(self.troubles):
            # In a deleted namespace every request gets the same error, so one request is enough.
            if namespace in gone and isinstance(self.troubles[kind, namespace], Forbidden):
                continue
            is_loaded = await self._load((kind, namespace))
            if not is_loaded and isinstance(self.troubles[kind, namespace], Forbidden):
                gone.add(namespace)
        return len(self.troubles) < before

    async def suspects(self) -> list[ObjectId]:
        """List all objects and return those that differ from the cache.

        The event about a difference may not have arrived yet. Wait some seconds, then call
        `repair`. Raises NotServed when the cluster does not know a required kind.
        """
        self._suspected = {}
        for scope in ((kind, each) for kind in self._served.watched for each in self._namespaces):
            if scope in self.troubles:
                # No watch has reported objects of this scope, so no watch can have missed a change.
                await self._load(scope)
                continue
            before = self._cache.snapshot(*scope).objects
            versions = await self._unless_refused(scope, self._list_versions(scope), {})
            if versions is None:
                continue
            kind, namespace = scope
            for id_ in [it for it in self._unreadable if it[0] == kind and it not in versions]:
                if namespace in (None, id_[1]):
                    del self._unreadable[id_]
            for id_ in {*before, *versions}:
                suspect = _Suspect(
                    version(before[id_]) if id_ in before else None, versions.get(id_)
                )
                if suspect.known is None and suspect.listed == self._unreadable.get(id_):
                    continue
                if suspect.known != suspect.listed:
                    self._suspected[id_] = suspect
        return list(self._suspected)

    async def repair(self, suspects: Sequence[ObjectId]) -> int:
        """Update the cache where it still differs, enqueue the services, and return the number of
        differences.

        An object that an event has updated since the call of `suspects` is skipped, even if the
        cache differs from the cluster again.
        """
        repaired = 0
        for id_ in suspects:
            suspect, known = self._suspected[id_], self._cache.get(*id_)
            if suspect.has_moved(known):
                continue
            try:
                read = await self._cluster.read(*id_)
                live = None if read is None else understood(read)
            except ClusterError as error:
                logger.warning("%s cannot be looked at: %s", " ".join(map(str, id_[1:])), error)
                continue
            except Unreadable:
                if suspect.listed is not None:
                    self._unreadable[id_] = suspect.listed
                for owner in self._cache.take(read) or ():
                    self._enqueue(owner)
                continue
            if self._cache.get(*id_) is not known or not self._differs(known, live):
                continue
            kind, namespace, name = id_
            logger.warning("the watch of %s missed %s/%s", kind.plural, namespace, name)
            self._diverged(kind.plural)
            repaired += 1
            self._repair(known, live)
        return repaired

    def _differs(self, known: Manifest | None, live: Manifest | None) -> bool:
        if live is None or known is None:
            return live is not known
        return is_other_version(known, live)

    def _repair(self, known: Manifest | None, live: Manifest | None) -> None:
        """Update the cached object. If the cluster's object is older, as after a restore of a
        backup, only set `went_back`.
        """
        if live is None:
            owners = None if known is None else self._cache.take(known, is_deleted=True)
        elif known is not None and version(live) < version(known):
            self.went_back = True
            owners = None
        else:
            owners = self._cache.take(live)
        for owner in owners or ():
            self._enqueue(owner)

    async def _load(self, scope: Scope) -> bool:
        before = self._cache.snapshot(*scope)
        listed = await self._list(scope)
        if listed is None:
            return False
        try:
            await self._check_age(before, listed)
        except ClusterError as error:
            self._note(scope, error)
            return False
        self._note_recovery(scope)
        self._take_over(before, listed)
        return True

    async def _check_age(self, before: Snapshot, listed: Iterable[Manifest]) -> None:
        """Raise ClusterError if the list is older than the cache, but the cluster is not.

        An API server that lags behind may return such a list, and the operator must not go back to
        an earlier spec. After a restore of its database, the cluster itself is older than the
        cache, too. A read of an object that still exists tells the two cases apart. The objects
        with the lowest versions are read first, because they change least often.
        """
        known = {id_: version(each) for id_, each in before.objects.items()}
        known = {**before.dropped, **known}
        older = [it for it in _readable(listed) if version(it) < known.get(object_id(it), 0)]
        if not older:
            return
        for each in heapq.nsmallest(READS_OF_OLD, older, key=version):
            live = await self._cluster.read(*object_id(each))
            if live is not None:
                if any(version(it) < known[object_id(each)] for it in _readable([live])):
                    return
                break
        raise ClusterError(
            "the list is older than what was read before: see that all API servers use one etcd"
        )

    def _take_over(self, before: Snapshot, listed: Iterable[Manifest]) -> None:
        for owner in self._cache.replace(before, listed):
            self._enqueue(owner)

    def _note(self, scope: Scope, error: ClusterError) -> None:
        if scope not in self.troubles:
            logger.error("%s", say_trouble(scope, error))
        self.troubles[scope] = error

    async def _list(self, scope: Scope) -> list[Manifest] | None:
        """Return all objects of a kind in a namespace.

        If that fails, record the error in `troubles` and return None.
        """
        return await self._unless_refused(scope, self._list_objects(scope), [])

    async def _list_objects(self, scope: Scope) -> list[Manifest]:
        # In the form that the API server sends, the objects of a large cluster would not fit into
        # memory.
        listed = []
        async for each in self._cluster.list_all(*scope):
            listed.append(self._cache.reduced(each))
            if len(listed) % OBJECTS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return listed

    async def _list_versions(self, scope: Scope) -> dict[ObjectId, int]:
        kind, _ = scope
        found = dict[ObjectId, int]()
        async for page in self._cluster.list_versions(*scope):
            found |= {(kind, *name): version for name, version in page.items()}
        return found

    async def _unless_refused(
        self, scope: Scope, listing: Awaitable[Listed], nothing: Listed
    ) -> Listed | None:
        """Return a list of the objects of a kind in a namespace, and `nothing` if the kind is gone.

        If that fails, record the error in `troubles` and return None.
        """
        kind, _ = scope
        try:
            return await listing
        except NotFound as error:
            if not self._served.is_optional(kind):
                raise NotServed(kind.kind, kind.api_version) from error
            # The kind was removed a moment ago, together with its objects.
            return nothing
        except ClusterError as error:
            self._note(scope, error)
            return None

    def _note_recovery(self, scope: Scope) -> None:
        if self.troubles.pop(scope, None) is not None:
            logger.info("%s can be listed again", _say_scope(scope))


@dataclass(frozen=True)
class _Suspect:
    """Versions of an object in the cache and in the list. None means that the object is missing."""

    known: int | None
    listed: int | None

    def has_moved(self, known: Manifest | None) -> bool:
        """Return whether an event has changed the object since it was compared with the list.
        `known` is the object that is cached now.
        """
        return (None if known is None else version(known)) != self.known


def say_trouble(scope: Scope, error: ClusterError) -> str:
    """Return a message that says why a kind cannot be listed in a namespace, and what to do."""
    _, namespace = scope
    advice = ""
    if isinstance(error, Forbidden):
        advice = "grant the right to the operator's service account"
        if namespace is not None:
            advice += f", or remove {namespace} from watchNamespaces if it is gone"
        advice = f": {advice}"
    return f"{_say_scope(scope)} cannot be listed{advice}: {error}"


def _say_scope(scope: Scope) -> str:
    kind, namespace = scope
    return f"{kind.plural} of {'all namespaces' if namespace is None else namespace}"


def _readable(listed: Iterable[Any]) -> Iterator[Manifest]:
    for each in listed:
        try:
            yield understood(each)
        except Unreadable:
            continue

"""The cache that the watches fill. It contains the newest version of each LLMService and of the
objects that belong to one.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmservice_operator import api, names
from llmservice_operator.api import Manifest
from llmservice_operator.cluster.compact import Compactor
from llmservice_operator.cluster.foreign import identity, understood
from llmservice_operator.errors import Unreadable
from llmservice_operator.kinds import LLMSERVICES, Kind, kind_of

Key = tuple[str, str]
"""Namespace and name of an LLMService."""

ObjectId = tuple[Kind, str, str]
"""Kind, namespace and name of any object."""


logger = logging.getLogger(__name__)

REMEMBERED_UNREADABLE = 1000
"""Maximum number of unreadable objects that are remembered. Each of them is counted, and logged
once."""
REMEMBERED_DELETIONS = 1000
"""Maximum number of deletions that are remembered. Far fewer can happen during one request of this
process."""


def object_id(manifest: Mapping[str, Any]) -> ObjectId:
    metadata = manifest["metadata"]
    return kind_of(manifest), metadata["namespace"], metadata["name"]


def version(manifest: Mapping[str, Any]) -> int:
    """Return the resource version, which the API server increases with every change."""
    return int(manifest["metadata"]["resourceVersion"])


def is_same_version(stored: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Return whether a write changed nothing. In that case the API server keeps the version."""
    one, other = (each.get("metadata", {}).get("resourceVersion") for each in (stored, live))
    return one is not None and one == other


def controller_of(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the owner reference of the object's controller, whatever its kind."""
    references: list[dict[str, Any]] = manifest["metadata"].get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), None)


def owner_key(manifest: Mapping[str, Any]) -> Key | None:
    """Return the LLMService that an object belongs to. The object's name, controller or label shows
    it.
    """
    metadata = manifest["metadata"]
    if kind_of(manifest) is LLMSERVICES:
        return metadata["namespace"], metadata["name"]
    controller = controller_of(manifest)
    if controller is not None and is_service(controller):
        return metadata["namespace"], controller["name"]
    # A pod's controller is a ReplicaSet, which the operator does not watch. An orphaned object has
    # no controller.
    name = (metadata.get("labels") or {}).get(names.SERVICE_LABEL)
    return (metadata["namespace"], name) if name else None


def is_service(reference: Mapping[str, Any]) -> bool:
    """Return whether an owner reference points to an LLMService of any version."""
    group = reference["apiVersion"].partition("/")[0]
    return bool(group == api.GROUP and reference["kind"] == api.KIND)


class Cache:
    def __init__(self) -> None:
        self._objects: dict[ObjectId, Manifest] = {}
        self._compactor = Compactor()
        self._by_owner: defaultdict[Key, set[ObjectId]] = defaultdict(set)
        self._dropped: dict[ObjectId, int] = {}
        """The versions of the most recently deleted objects. The response to a write may arrive
        after the event of a later deletion, and must not bring the object back."""
        self._unreadable: dict[tuple[str, str, str], None] = {}
        """Kind, namespace and name of each unreadable object, as texts."""
        self._changes: defaultdict[Kind, int] = defaultdict(int)

    def observe(self, manifest: Any) -> bool:
        """Keep the object unless a version at least as new is known; return whether the cache
        changed.

        The responses to writes are observed, too, so the later event of a write changes nothing. An
        unreadable object is not kept, and its earlier version is forgotten.
        """
        return self.take(manifest) is not None

    def drop(self, manifest: Any) -> bool:
        """Forget a deleted object; return whether it was cached. A newer object of the same name
        stays.
        """
        return self.take(manifest, is_deleted=True) is not None

    def take(self, manifest: Any, *, is_deleted: bool = False) -> frozenset[Key] | None:
        """Observe or drop an object; return the services that it belongs or belonged to.

        None means that the cache did not change.
        """
        if not is_deleted and self._held(manifest) is not None:
            return None  # most events repeat the response to a write
        try:
            found = understood(manifest)
        except Unreadable as error:
            return self._skip(manifest, error, is_deleted=is_deleted)
        self._unreadable.pop(identity(found), None)
        id_ = object_id(found)
        known = self._objects.get(id_)
        if is_deleted:
            self._dropped.pop(id_, None)
            self._dropped[id_] = version(found)
            if len(self._dropped) > REMEMBERED_DELETIONS:
                del self._dropped[next(iter(self._dropped))]
            if known is None or known["metadata"]["uid"] != found["metadata"]["uid"]:
                return None
            return self._remove(id_)
        if known is not None and version(known) >= version(found):
            return None
        if self._dropped.get(id_, 0) >= version(found):
            return None
        return self._put(id_, found)

    def replace(self, before: "Snapshot", listed: Iterable[Any]) -> tuple[Key, ...]:
        """Make the cache equal to a list of objects, even where the cached versions are newer.

        `before` is the snapshot from the time when the list was requested. An object that has
        changed in the cache since then is kept, unless its version in the list is newer. Returns
        the services of all changed objects.
        """
        found, changed = dict[ObjectId, Manifest](), list[Key]()
        unreadable = {each for each in self._unreadable if before.holds(each)}
        for manifest in listed:
            unreadable.discard(identity(manifest))
            try:
                item = understood(manifest)
            except Unreadable as error:
                changed += self._skip(manifest, error) or ()
            else:
                found[object_id(item)] = item
        for each in unreadable:
            self._unreadable.pop(each, None)
        for id_, known in before.objects.items():
            if id_ not in found and self._objects.get(id_) is known:
                changed += self._remove(id_)
        for id_, item in found.items():
            now = self._objects.get(id_)
            has_moved = now is not before.objects.get(id_) or (
                self._dropped.get(id_) != before.dropped.get(id_)
            )
            if has_moved:
                changed += self.take(item) or ()
            elif now is None or is_other_version(now, item):
                self._dropped.pop(id_, None)
                changed += self._put(id_, item)
        return tuple(dict.fromkeys(changed))

    def reduced(self, manifest: Any) -> Any:
        """Return the object in the form that the cache keeps, which takes much less memory.

        Returns the cached object itself if the version is the same. Returns an unreadable object
        unchanged.
        """
        if (held := self._held(manifest)) is not None:
            return held
        try:
            return self._compactor.compact(understood(manifest))
        except (Unreadable, RecursionError):
            return manifest

    def snapshot(self, kind: Kind, namespace: str | None) -> "Snapshot":
        """Return the cached objects of a kind in a namespace, for `replace`; None means all
        namespaces.
        """
        objects = {
            id_: known
            for id_, known in self._objects.items()
            if id_[0] is kind and namespace in (None, id_[1])
        }
        return Snapshot(kind, namespace, objects, dict(self._dropped))

    def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        return self._objects.get((kind, namespace, name))

    def service(self, key: Key) -> Manifest | None:
        return self._objects.get((LLMSERVICES, *key))

    def owned(self, key: Key, kind: Kind) -> list[Manifest]:
        """Return the objects of a kind that belong to the LLMService, sorted by name."""
        ids = sorted(id_[2] for id_ in self._by_owner.get(key, ()) if id_[0] is kind)
        return [self._objects[kind, key[0], name] for name in ids]

    def changes(self, kind: Kind) -> int:
        """Return the number of changes of the cached objects of a kind so far."""
        return self._changes[kind]

    def count(self, kind: Kind) -> int:
        return sum(1 for id_ in self._objects if id_[0] is kind)

    def count_unreadable(self, kind: Kind) -> int:
        """Return the number of unreadable objects of a kind.

        At most REMEMBERED_UNREADABLE objects of all kinds together are counted.
        """
        return sum(1 for each in self._unreadable if each[0] == kind.kind)

    def of_kind(self, kind: Kind) -> list[Manifest]:
        return [manifest for id_, manifest in self._objects.items() if id_[0] is kind]

    def kinds(self) -> set[Kind]:
        """Return the kinds of the cached objects."""
        return {id_[0] for id_ in self._objects}

    def _held(self, manifest: Any) -> Manifest | None:
        """Return the cached object if it has the same version as this one, else None."""
        try:
            known = self._objects.get(object_id(manifest))
            return None if known is None or is_other_version(known, manifest) else known
        except (KeyError, TypeError, ValueError):
            return None

    def _skip(
        self, manifest: Any, error: Unreadable, *, is_deleted: bool = False
    ) -> frozenset[Key] | None:
        """Leave out an unreadable object, and forget its earlier version."""
        key = identity(manifest)
        if is_deleted:
            self._unreadable.pop(key, None)
        elif key not in self._unreadable:
            logger.warning("an object is skipped, because it makes no sense: %s", error)
            self._unreadable[key] = None
            if len(self._unreadable) > REMEMBERED_UNREADABLE:
                del self._unreadable[next(iter(self._unreadable))]
        try:
            id_ = object_id(manifest)
            return self._remove(id_) if id_ in self._objects else None
        except (KeyError, TypeError):
            return None  # not even its name can be read

    def _put(self, id_: ObjectId, manifest: Manifest) -> frozenset[Key]:
        owners = self._remove(id_)
        self._changes[id_[0]] += 1
        try:
            self._objects[id_] = self._compactor.compact(manifest)
        except RecursionError:
            self._skip(manifest, Unreadable(f"{' '.join(identity(manifest))} is nested too deep"))
            return owners
        owner = owner_key(manifest)
        if owner is None:
            return owners
        self._by_owner[owner].add(id_)
        return owners | {owner}

    def _remove(self, id_: ObjectId) -> frozenset[Key]:
        known = self._objects.pop(id_, None)
        if known is None:
            return frozenset()
        self._changes[id_[0]] += 1
        owner = owner_key(known)
        if owner is None:
            return frozenset()
        self._by_owner[owner].discard(id_)
        if not self._by_owner[owner]:
            del self._by_owner[owner]
        return frozenset({owner})


@dataclass(frozen=True)
class Snapshot:
    """Content of the cache for a kind in a namespace at the time when a list was requested."""

    kind: Kind
    namespace: str | None
    objects: Mapping[ObjectId, Manifest]
    dropped: Mapping[ObjectId, int]

    def holds(self, identity: tuple[str, str, str]) -> bool:
        """Return whether an object is of this kind and namespace."""
        return identity[0] == self.kind.kind and self.namespace in (None, identity[1])


def is_other_version(known: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    one, other = known["metadata"], found["metadata"]
    return (one["uid"], version(known)) != (other["uid"], version(found))

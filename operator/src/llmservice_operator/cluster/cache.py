"""The store of the watches: LLMServices and their children, the newest version of each."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from llmservice_operator import api, names
from llmservice_operator.api import Manifest
from llmservice_operator.kinds import LLMSERVICES, Kind, kind_of

Key = tuple[str, str]
"""Namespace and name of an LLMService."""

ObjectId = tuple[Kind, str, str]
"""Kind, namespace and name of any object."""


REMEMBERED_DELETIONS = 1000
"""Far more than can happen while one request of this process is under way."""


def object_id(manifest: Mapping[str, Any]) -> ObjectId:
    metadata = manifest["metadata"]
    return kind_of(manifest), metadata["namespace"], metadata["name"]


def version(manifest: Mapping[str, Any]) -> int:
    """Return the resource version; the API server counts it up with every change."""
    return int(manifest["metadata"]["resourceVersion"])


def is_same_version(stored: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Return whether a write changed nothing: the API server then keeps the version."""
    one, other = (each["metadata"].get("resourceVersion") for each in (stored, live))
    return one is not None and one == other


def controller_of(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the owner reference of the object's controller, whatever its kind."""
    references: list[dict[str, Any]] = manifest["metadata"].get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), None)


def owner_key(manifest: Mapping[str, Any]) -> Key | None:
    """Return the LLMService that an object belongs to, by its own name, controller or label."""
    metadata = manifest["metadata"]
    if kind_of(manifest) is LLMSERVICES:
        return metadata["namespace"], metadata["name"]
    controller = controller_of(manifest)
    if controller is not None and is_service(controller):
        return metadata["namespace"], controller["name"]
    # A pod's controller is a ReplicaSet, which the operator does not watch. An orphan has none.
    name = (metadata.get("labels") or {}).get(names.SERVICE_LABEL)
    return (metadata["namespace"], name) if name else None


def is_service(reference: Mapping[str, Any]) -> bool:
    """Say whether an owner reference points to an LLMService, of whatever version."""
    group = reference["apiVersion"].partition("/")[0]
    return bool(group == api.GROUP and reference["kind"] == api.KIND)


def _trimmed(manifest: Manifest) -> Manifest:
    """Leave out the field ownership of others: half of a manifest's bytes, and of no use here."""
    metadata = dict(manifest["metadata"])
    ours = [e for e in metadata.pop("managedFields", ()) if e["manager"] == names.FIELD_MANAGER]
    if ours:
        metadata["managedFields"] = ours
    return {**manifest, "metadata": metadata}


class Cache:
    def __init__(self) -> None:
        self._objects: dict[ObjectId, Manifest] = {}
        self._by_owner: defaultdict[Key, set[ObjectId]] = defaultdict(set)
        self._dropped: dict[ObjectId, int] = {}
        """The versions of the newest deletions. The answer to a write may arrive after the event of
        a deletion that followed it, and must not bring the object back."""

    def observe(self, manifest: Manifest) -> bool:
        """Keep the object unless a version at least as new is known; say whether it was kept.

        What a write returned is observed too, so the event of that write changes nothing.
        """
        key = object_id(manifest)
        known = self._objects.get(key)
        if known is not None and version(known) >= version(manifest):
            return False
        if self._dropped.get(key, 0) >= version(manifest):
            return False
        self._remove(key)
        self._objects[key] = _trimmed(manifest)
        owner = owner_key(manifest)
        if owner is not None:
            self._by_owner[owner].add(key)
        return True

    def drop(self, manifest: Manifest) -> bool:
        """Forget a deleted object; False when a newer one of its name has been seen since."""
        key = object_id(manifest)
        self._dropped.pop(key, None)
        self._dropped[key] = version(manifest)
        if len(self._dropped) > REMEMBERED_DELETIONS:
            del self._dropped[next(iter(self._dropped))]
        known = self._objects.get(key)
        if known is None or known["metadata"]["uid"] != manifest["metadata"]["uid"]:
            return False
        self._remove(key)
        return True

    def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        return self._objects.get((kind, namespace, name))

    def service(self, key: Key) -> Manifest | None:
        return self._objects.get((LLMSERVICES, *key))

    def owned(self, key: Key, kind: Kind) -> list[Manifest]:
        """Return the objects of a kind that belong to the LLMService, sorted by name."""
        ids = sorted(id_[2] for id_ in self._by_owner.get(key, ()) if id_[0] is kind)
        return [self._objects[kind, key[0], name] for name in ids]

    def count(self, kind: Kind) -> int:
        return sum(1 for id_ in self._objects if id_[0] is kind)

    def of_kind(self, kind: Kind) -> Iterable[Manifest]:
        return [manifest for id_, manifest in self._objects.items() if id_[0] is kind]

    def kinds(self) -> set[Kind]:
        """Return the kinds of which there is an object."""
        return {id_[0] for id_ in self._objects}

    def _remove(self, key: ObjectId) -> None:
        known = self._objects.pop(key, None)
        owner = owner_key(known) if known is not None else None
        if owner is not None:
            self._by_owner[owner].discard(key)
            if not self._by_owner[owner]:
                del self._by_owner[owner]

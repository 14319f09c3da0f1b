"""Reduces the memory that cached objects take.

A cached pod contains only the fields that the operator reads. In all objects, equal parts of the
spec and of the record of field ownership are stored once. The objects of one kind contain the same
parts for every service: probes, rules, and above all the record of field ownership. All objects
share one copy of such a part, so no code may change a cached object in place.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.kinds import PODS, kind_of

SHARED_PARTS: Final = 4096
SHARED_WHOLES: Final = 256
"""Maximum numbers of parts and of whole fields that are kept for sharing. The least recently used
ones are dropped first."""

_POD_METADATA: Final = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "labels",
    "ownerReferences",
    "creationTimestamp",
    "deletionTimestamp",
)
_POD_STATUS: Final = ("phase", "reason", "message", "podIP", "startTime")
_CONDITION: Final = ("type", "status", "reason", "message", "lastTransitionTime")
_CONTAINER: Final = ("name", "resources", "startupProbe")
_INIT_CONTAINER: Final = ("resources", "restartPolicy")
_VOLUME: Final = ("persistentVolumeClaim",)
_CONTAINER_STATUS: Final = (
    "name",
    "image",
    "state",
    "lastState",
    "restartCount",
    "ready",
    "started",
)
_POD_SPEC_LISTS: Final = {
    "containers": _CONTAINER,
    "initContainers": _INIT_CONTAINER,
    "volumes": _VOLUME,
}
_POD_LISTS: Final = {
    "conditions": _CONDITION,
    "containerStatuses": _CONTAINER_STATUS,
    "initContainerStatuses": _CONTAINER_STATUS,
}


class Compactor:
    def __init__(self) -> None:
        self._parts: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        """Parts by their content, the most recently used last. The key of a part contains the `id`
        of each part inside it. These ids stay valid, because the part keeps its inner parts
        alive."""
        self._wholes: OrderedDict[str, Any] = OrderedDict()
        """Fields of a spec or of a record of field ownership, by their JSON text."""

    def compact(self, manifest: Manifest) -> Manifest:
        """Return the object in the form that the cache keeps."""
        if kind_of(manifest) is PODS:
            pod = _pod(manifest)
            # The containers of all services have equal probes and often equal resources.
            return {**pod, "spec": self._share_fields(pod["spec"])} if "spec" in pod else pod
        found, metadata = dict(manifest), dict(manifest["metadata"])
        found["metadata"] = metadata
        if "spec" in manifest:
            found["spec"] = self._share_fields(manifest["spec"])
        if "managedFields" in metadata:
            metadata["managedFields"] = [
                {
                    name: self._share_fields(each) if isinstance(each, dict) else each
                    for name, each in entry.items()
                }
                for entry in metadata["managedFields"]
            ]
        return found

    def _share_fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Share each field.

        A field is first looked up as a whole by its JSON text, because that is fast.
        """
        shared = {}
        for name, value in fields.items():
            text = json.dumps(value)
            if text in self._wholes:
                self._wholes.move_to_end(text)
            else:
                self._wholes[text] = self._share(value)
            shared[name] = self._wholes[text]
            if len(self._wholes) > SHARED_WHOLES:
                self._wholes.popitem(last=False)
        return shared

    def _share(self, value: Any) -> Any:
        """Return an equal value in which every known part is replaced by its shared copy."""
        if isinstance(value, dict):
            shared: Any = {name: self._share(each) for name, each in value.items()}
            key: tuple[Any, ...] = (dict, *shared, *map(_key, shared.values()))
        elif isinstance(value, list):
            shared = [self._share(each) for each in value]
            key = (list, *map(_key, shared))
        else:
            return value
        known = self._parts.get(key)
        if known is not None:
            self._parts.move_to_end(key)
            return known
        self._parts[key] = shared
        if len(self._parts) > SHARED_PARTS:
            self._parts.popitem(last=False)
        return shared


def _key(value: Any) -> Any:
    """Return the form of a value inside the key of its enclosing part."""
    if isinstance(value, dict | list):
        return (id(value),)
    # Python treats True, 1 and 1.0 as equal.
    return value if isinstance(value, str) else (type(value), value)


def _pod(manifest: Manifest) -> Manifest:
    found = _picked(manifest, ("apiVersion", "kind"))
    metadata = manifest["metadata"]
    found["metadata"] = _picked(metadata, _POD_METADATA)
    annotations = _picked(metadata.get("annotations", {}), (names.DELETION_COST_ANNOTATION,))
    if annotations:
        found["metadata"]["annotations"] = annotations
    for part, texts, lists in (
        ("spec", ("nodeName", "overhead"), _POD_SPEC_LISTS),
        ("status", _POD_STATUS, _POD_LISTS),
    ):
        if part in manifest:
            whole = manifest[part]
            found[part] = _picked(whole, texts) | {
                name: [_picked(item, fields) for item in whole[name]]
                for name, fields in lists.items()
                if name in whole
            }
    return found


def _picked(part: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    return {field: part[field] for field in fields if field in part}

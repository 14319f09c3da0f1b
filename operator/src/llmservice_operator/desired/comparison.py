"""Does a live object already hold what we would apply?

Server-side apply records in metadata.managedFields which fields each manager owns, down to the
item of a list. Comparing along that record answers both questions at once: does every field we
send have our value, and is there a field we once sent and no longer do. So a converged pass writes
nothing, a removed field is noticed, and no hash annotation is needed. What the API server or
others added to the object is not ours and is not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmservice_operator import names
from llmservice_operator.api.fields import quantity_value

_IDENTITY = {"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp"}
"""Metadata without a field manager. The API server leaves it out of managedFields, as it does
apiVersion and kind."""

_HOLDS_QUANTITIES = {"limits", "requests", "sizeLimit"}
"""Fields that are, or hold, amounts; a text elsewhere is never one, even if it looks like it."""


def is_up_to_date(
    live: Mapping[str, Any], manifest: Mapping[str, Any], subresource: str | None = None
) -> bool:
    """Return whether applying `manifest` (to `subresource`, such as status) would change nothing.

    A manifest without metadata stands for one that sends nothing of the metadata.
    The live object must still have its managedFields. Lists must hold their merge keys (a port's
    protocol, say) and no field may be an empty list or mapping that the API server would drop.
    """
    owned = _owned_fields(live, subresource)
    if owned is None:
        return False
    sent = {key: manifest[key] for key in manifest.keys() - {"apiVersion", "kind", "metadata"}}
    metadata = manifest.get("metadata", {})
    metadata = {key: metadata[key] for key in metadata.keys() - _IDENTITY}
    if metadata:
        sent["metadata"] = metadata
    return _matches(owned, sent, live, in_quantities=False)


def owns_field(live: Mapping[str, Any], *path: str) -> bool:
    """Return whether we have applied the field of the live object that the path leads to."""
    owned: Mapping[str, Any] = _owned_fields(live, None) or {}
    for key in path:
        if f"f:{key}" not in owned:
            return False
        owned = owned[f"f:{key}"]
    return True


def _owned_fields(live: Mapping[str, Any], subresource: str | None) -> Mapping[str, Any] | None:
    for entry in live.get("metadata", {}).get("managedFields", []):
        if (
            entry.get("manager") == names.FIELD_MANAGER
            and entry.get("operation") == "Apply"
            and entry.get("subresource") == subresource
        ):
            owned: Mapping[str, Any] = entry["fieldsV1"]
            return owned
    return None


def _matches(owned: Mapping[str, Any], sent: Any, live: Any, *, in_quantities: bool) -> bool:
    """Compare one node; `owned` is its part of fieldsV1, empty where ownership goes no deeper."""
    children = {path: deeper for path, deeper in owned.items() if path != "."}
    if not children:
        return _equal(sent, live, in_quantities=in_quantities)
    kind = next(iter(children))[0]
    if kind == "f" and isinstance(sent, Mapping) and isinstance(live, Mapping):
        return children.keys() == {f"f:{key}" for key in sent} and all(
            key in live
            and _matches(
                children[f"f:{key}"],
                value,
                live[key],
                in_quantities=in_quantities or key in _HOLDS_QUANTITIES,
            )
            for key, value in sent.items()
        )
    if kind == "k" and isinstance(sent, list) and isinstance(live, list):
        return len(children) == len(sent) and all(
            _item_matches(json.loads(path[2:]), deeper, sent, live, in_quantities=in_quantities)
            for path, deeper in children.items()
        )
    if kind == "v" and isinstance(sent, list) and isinstance(live, list):
        values = [json.loads(path[2:]) for path in children]
        return sorted(values) == sorted(sent) and all(value in live for value in values)
    return False


def _item_matches(
    key: Mapping[str, Any],
    owned: Mapping[str, Any],
    sent: list[Any],
    live: list[Any],
    *,
    in_quantities: bool,
) -> bool:
    """Compare the one item of a list that has these merge keys."""
    ours = [item for item in sent if key.items() <= item.items()]
    theirs = [item for item in live if key.items() <= item.items()]
    return len(ours) == len(theirs) == 1 and _matches(
        owned, ours[0], theirs[0], in_quantities=in_quantities
    )


def _equal(sent: Any, live: Any, *, in_quantities: bool) -> bool:
    if isinstance(sent, bool) or isinstance(live, bool):
        return sent is live  # True == 1 in Python, not in the API
    if in_quantities and isinstance(sent, str | int) and isinstance(live, str | int):
        # The API server writes 1000m as 1 and 1024Mi as 1Gi.
        return quantity_value(sent) == quantity_value(live) and quantity_value(live) is not None
    return bool(sent == live)

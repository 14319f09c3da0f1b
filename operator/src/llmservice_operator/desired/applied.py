"""Reads the part of a live object that the operator has applied.

This part is needed when the object cannot be built from the spec.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from llmservice_operator.desired.comparison import owned_fields


def applied_field(live: Mapping[str, Any], field: str) -> Any:
    """For a top-level field of a live object, return the part that the operator has applied.

    Applying the part again changes nothing. The part contains no defaults of the API server and no
    fields of other clients, so the operator does not become their owner. Returns None if the
    operator owns no part of the field.
    """
    owned = owned_fields(live, None) or {}
    key = f"f:{field}"
    return _applied(owned[key], live[field]) if key in owned and field in live else None


def _applied(owned: Any, live: Any) -> Any:
    children = owned if isinstance(owned, Mapping) else {}
    children = {key: deeper for key, deeper in children.items() if key != "."}
    if children and isinstance(live, Mapping):
        return {
            key[2:]: _applied(deeper, live[key[2:]])
            for key, deeper in children.items()
            if key[2:] in live
        }
    if children and isinstance(live, list):
        return [
            _applied(deeper, item)
            for item in live
            for key, deeper in children.items()
            if _is_named(item, key)
        ]
    return copy.deepcopy(live)


def _is_named(item: Any, key: str) -> bool:
    """Return whether a key of managedFields names this item of a list."""
    named = json.loads(key[2:])
    if key.startswith("v:"):
        return bool(item == named)
    return isinstance(item, Mapping) and named.items() <= item.items()

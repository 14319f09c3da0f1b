"""Compares a live object with the manifest that the operator would apply, and names the
differences.

Server-side apply records in metadata.managedFields which fields each manager owns, down to the item
of a list. With that record, a comparison finds two kinds of fields: those that the operator sends
with a value other than the live one, and those that the operator has sent earlier but does not send
now. So a converged pass writes nothing, a removed field is noticed, and no hash annotation is
needed. Fields that the API server or other clients added are not compared.

Any client may store anything in managedFields. An unreadable record counts as a difference.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api.fields import quantity_value

_HEAD = {"apiVersion", "kind", "metadata"}
_IDENTITY = {"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp"}
"""Metadata fields without a field manager. The API server leaves them out of managedFields, as it
leaves out apiVersion and kind."""

_HOLDS_QUANTITIES = {"limits", "requests", "sizeLimit", "target", "tolerance"}
"""Fields that are, or contain, quantities. A text in another field is never a quantity, even if it
looks like one. The target belongs to a metric, and the tolerance to an autoscaler."""

CACHED_KEYS: Final = 512
"""Number of keys of list items whose parsed form is cached. Most keys are the same for all
services."""
LONGEST_CACHED_KEY: Final = 200
"""Maximum length of a cached key in characters."""

_PLAIN: Final = frozenset({str, int, bool})
"""Types whose values are equal for the API server, in every field, if they are equal in Python."""

ABSENT: Final = None
"""Value of a missing field. The API server stores no null in a field that the operator sends."""


@dataclass(frozen=True)
class Difference:
    """One field in which a live object differs from the operator's manifest."""

    keys: tuple[str, ...]
    """Path of the field, in the form of managedFields: `f:` names a field, `k:` an item of a list
    by its keys, and `v:` an item by its value."""
    sent: Any
    live: Any

    @property
    def path(self) -> str:
        """Path of the field in the usual form: spec.containers[name=server].image."""
        return "".join(map(_readable, self.keys)).lstrip(".") or "metadata.managedFields"


def is_up_to_date(
    live: Mapping[str, Any], manifest: Mapping[str, Any], subresource: str | None = None
) -> bool:
    """Return whether applying `manifest` (to `subresource`, such as status) would change nothing.

    A manifest without metadata sends no field of the metadata. The live object must still have its
    managedFields. The items of lists must contain their merge keys, such as the protocol of a port,
    and no field may be an empty list or mapping that the API server would drop.
    """
    return next(find_differences(live, manifest, subresource), None) is None


def find_differences(
    live: Mapping[str, Any], manifest: Mapping[str, Any], subresource: str | None = None
) -> Iterator[Difference]:
    """Yield each field that applying `manifest` would change; see `is_up_to_date`.

    An object that the operator has never applied differs as a whole.
    """
    owned = owned_fields(live, subresource)
    if owned is None:
        yield Difference((), names.FIELD_MANAGER, ABSENT)
        return
    sent = {key: value for key, value in manifest.items() if key not in _HEAD}
    metadata = manifest.get("metadata", {})
    metadata = {key: value for key, value in metadata.items() if key not in _IDENTITY}
    if metadata:
        sent["metadata"] = metadata
    yield from _differences((), owned, sent, live, in_quantities=False)


def owns_field(live: Mapping[str, Any], *path: str) -> bool:
    """Return whether the operator has applied the field of the live object at this path."""
    owned: Any = owned_fields(live, None) or {}
    for key in path:
        if not isinstance(owned, Mapping) or f"f:{key}" not in owned:
            return False
        owned = owned[f"f:{key}"]
    return True


def owned_fields(live: Mapping[str, Any], subresource: str | None) -> Mapping[str, Any] | None:
    """Return the fieldsV1 that the operator has applied; None if it has applied nothing."""
    for entry in live.get("metadata", {}).get("managedFields") or ():
        if (
            isinstance(entry, Mapping)
            and entry.get("manager") == names.FIELD_MANAGER
            and entry.get("operation") == "Apply"
            and entry.get("subresource") == subresource
            and isinstance(entry.get("fieldsV1"), Mapping)
        ):
            owned: Mapping[str, Any] = entry["fieldsV1"]
            return owned
    return None


def _differences(
    keys: tuple[str, ...], owned: Any, sent: Any, live: Any, *, in_quantities: bool
) -> Iterator[Difference]:
    """Compare one node of the objects.

    `owned` is the node's part of fieldsV1. It is empty if fieldsV1 records nothing below the node.
    """
    children = owned if isinstance(owned, dict) else {"?": {}}
    children = {key: deeper for key, deeper in children.items() if key != "."}
    kinds = {key[:2] for key in children}
    if not children:
        if not _equal(sent, live, in_quantities=in_quantities):
            yield Difference(keys, sent, live)
    elif kinds == {"f:"} and isinstance(sent, dict) and isinstance(live, dict):
        yield from _field_differences(keys, children, sent, live, in_quantities=in_quantities)
    elif kinds == {"k:"} and isinstance(sent, list) and isinstance(live, list):
        yield from _item_differences(keys, children, sent, live, in_quantities=in_quantities)
    elif kinds == {"v:"} and isinstance(sent, list) and isinstance(live, list):
        yield from _value_differences(keys, children, sent, live)
    else:
        yield Difference(keys, sent, live)


def _field_differences(
    keys: tuple[str, ...],
    owned: Mapping[str, Any],
    sent: Mapping[str, Any],
    live: Mapping[str, Any],
    *,
    in_quantities: bool,
) -> Iterator[Difference]:
    for field, value in sent.items():
        key = f"f:{field}"
        if key in owned and field in live:
            found = live[field]
            if type(value) is type(found) in _PLAIN and value == found and owned[key] == {}:
                continue  # most fields are equal, and need no further comparison
            yield from _differences(
                (*keys, key),
                owned[key],
                value,
                found,
                in_quantities=in_quantities or field in _HOLDS_QUANTITIES,
            )
        else:
            yield Difference((*keys, key), value, live.get(field, ABSENT))
    for key in owned:
        if key[2:] not in sent:
            yield Difference((*keys, key), ABSENT, live.get(key[2:], ABSENT))


def _item_differences(
    keys: tuple[str, ...],
    owned: Mapping[str, Any],
    sent: list[Any],
    live: list[Any],
    *,
    in_quantities: bool,
) -> Iterator[Difference]:
    """Compare the items of a list by their merge keys."""
    ours, theirs, matched = _Items(sent), _Items(live), set[int]()
    for key, deeper in owned.items():
        merge_keys = _parsed(key)
        mine = [index for index in ours.having(merge_keys) if index not in matched]
        found = [live[index] for index in theirs.having(merge_keys)]
        matched.update(mine)
        if len(mine) == len(found) == 1:
            yield from _differences(
                (*keys, key), deeper, sent[mine[0]], found[0], in_quantities=in_quantities
            )
        else:
            yield Difference(
                (*keys, key), [sent[index] for index in mine] or ABSENT, found or ABSENT
            )
    for index, item in enumerate(sent):
        if index not in matched:
            yield Difference(keys, item, ABSENT)


class _Items:
    """The items of a list, indexed by their merge keys."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items
        self._indexes: dict[tuple[str, ...], dict[str, list[int]]] = {}
        """For each set of merge keys, a mapping from the values of these keys, as a text, to the
        positions of the items that have them."""

    def having(self, merge_keys: Any) -> list[int]:
        """Return the positions of the items that have these keys and values."""
        if not isinstance(merge_keys, dict):
            return []
        fields = tuple(merge_keys)
        if fields not in self._indexes:
            index: defaultdict[str, list[int]] = defaultdict(list)
            for number, item in enumerate(self._items):
                if isinstance(item, dict) and all(field in item for field in fields):
                    index[_text(item, fields)].append(number)
            self._indexes[fields] = dict(index)
        return self._indexes[fields].get(_text(merge_keys, fields), [])


def is_key_of(key: str, item: Any) -> bool:
    """Return whether a key of managedFields names this item of a list by its merge keys."""
    named = _parsed(key) if key.startswith("k:") else None
    return isinstance(named, dict) and isinstance(item, dict) and named.items() <= item.items()


def _text(item: dict[str, Any], fields: tuple[str, ...]) -> str:
    return str([item[field] for field in fields])


def _value_differences(
    keys: tuple[str, ...], owned: Mapping[str, Any], sent: list[Any], live: list[Any]
) -> Iterator[Difference]:
    """Compare the items of a list that is a set. The order of the items does not matter."""
    values = [_parsed(key) for key in owned]
    for value in sent:
        if value not in values or value not in live:
            yield Difference(keys, value, ABSENT)
    for key, value in zip(owned, values, strict=True):
        if value not in sent:
            yield Difference((*keys, key), ABSENT, value)


def _parsed(key: str) -> Any:
    # Any client may have stored the key, and long keys would make the cache large.
    return _parsed_once(key) if len(key) <= LONGEST_CACHED_KEY else _parsed_anew(key)


def _parsed_anew(key: str) -> Any:
    try:
        return json.loads(key[2:])
    except (ValueError, RecursionError):
        return ABSENT


_parsed_once = functools.lru_cache(CACHED_KEYS)(_parsed_anew)


def _equal(sent: Any, live: Any, *, in_quantities: bool) -> bool:
    if isinstance(sent, bool) or isinstance(live, bool):
        return sent is live  # True == 1 in Python, not in the API
    if isinstance(sent, dict) and isinstance(live, dict):
        return sent.keys() == live.keys() and all(
            _equal(value, live[field], in_quantities=in_quantities or field in _HOLDS_QUANTITIES)
            for field, value in sent.items()
        )
    if isinstance(sent, list) and isinstance(live, list):
        return len(sent) == len(live) and all(
            _equal(one, other, in_quantities=in_quantities)
            for one, other in zip(sent, live, strict=True)
        )
    if in_quantities and isinstance(sent, str | int) and isinstance(live, str | int):
        # The API server writes 1000m as 1, 1024Mi as 1Gi and 1000 as 1k.
        amount = quantity_value(sent)
        return sent == live or (amount is not None and amount == quantity_value(live))
    return bool(sent == live)


def _readable(key: str) -> str:
    if key.startswith("f:"):
        return f".{key[2:]}"
    value = _parsed(key)
    if isinstance(value, Mapping):
        return f"[{','.join(f'{field}={each}' for field, each in value.items())}]"
    return f"[{value}]"

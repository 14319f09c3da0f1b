"""Describes the field managers that change a field of the operator.

They are read from the managedFields of the live object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.desired.comparison import ABSENT, Difference, is_key_of

_VALUE_LIMIT: Final = 120
"""Longest value in a message, in characters."""
_FIELDS_TOLD: Final = 3
"""Maximum number of differing fields that a message names. The message gives only the number of the
others."""
_FIELD_AT_FAULT: Final = re.compile(r"(spec(?:\.\w+|\[[^\]]*\])+): ")
"""Pattern of the field with which a refusal of the API server begins."""
_OUR_MANAGERS: Final = frozenset({names.FIELD_MANAGER, names.HANDOVER_FIELD_MANAGER})


def say_rewrite(what: str, differences: Sequence[Difference]) -> str:
    """Return the message about stored values that differ from the values sent."""
    told = "; ".join(
        f"{each.path} is {_written(each.live)}, and the operator sends {_written(each.sent)}"
        for each in differences[:_FIELDS_TOLD]
    )
    return (
        f"{what}: {told}{_and_others(differences)}. An admission webhook of the cluster rewrites "
        "it, and the rewritten object is what runs."
    )


def say_contest(differences: Sequence[Difference], live: Mapping[str, Any]) -> str:
    """Return the message that names the fields of a live object that differ repeatedly, and their
    owners.
    """
    told = "; ".join(
        f"{each.path} is {_written(each.live)}, and the operator has written "
        f"{_written(each.sent)} several times: {_owner(live, each.keys)}"
        for each in differences[:_FIELDS_TOLD]
    )
    return f"{told}{_and_others(differences)}."


def say_foreign_cause(live: Mapping[str, Any], refusal: str) -> str | None:
    """Return the message about another owner of the field that a refusal names; None if the refusal
    names no field or the field has no other owner.
    """
    found = _FIELD_AT_FAULT.search(refusal)
    if found is None:
        return None
    fields = [part for part in re.split(r"[.\[\]]+", found[1]) if part]
    # The refusal may name a field below the one that the other manager has set.
    managers = [
        name for name, _ in _managers(live, lambda owned: _owns(owned, _keys(owned, live, fields)))
    ]
    if not managers:
        return None
    return f"{refusal.rstrip('.')}. The manager {managers[0]} owns {'.'.join(fields)}."


def _owner(live: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return the part of a message that names the other owner of a field, or says that there is
    none.
    """
    managers = list(_managers(live, lambda owned: _owns(owned, keys)))
    ours = (each.get("fieldsV1") for each in _entries(live, is_ours=True))
    if not managers and any(_owns(owned, keys) for owned in ours):
        return (
            "only the operator owns the field, so another release of the operator also serves the "
            "namespace, or an admission webhook changes it"
        )
    if not managers:
        return "no other manager owns the field, so an admission webhook or a deletion changes it"
    manager, is_update = managers[0]
    how = "updates" if is_update else "applies"
    return f"the manager {manager} {how} it"


def _managers(
    live: Mapping[str, Any], is_owner: Callable[[Any], bool]
) -> Iterator[tuple[str, bool]]:
    """Yield the name of each other manager of a field, the latest first, and whether its operation
    is Update.

    `is_owner` returns whether a record of ownership contains the field.
    """
    found = [each for each in _entries(live, is_ours=False) if is_owner(each.get("fieldsV1"))]
    for entry in sorted(found, key=lambda each: str(each.get("time")), reverse=True):
        yield str(entry.get("manager") or "without a name"), entry.get("operation") == "Update"


def _entries(live: Mapping[str, Any], *, is_ours: bool) -> Iterator[Mapping[str, Any]]:
    """Yield the records in managedFields: those of the operator's managers if `is_ours`, otherwise
    those of all other managers. Records of subresources are left out.
    """
    for entry in live.get("metadata", {}).get("managedFields") or ():
        if (
            isinstance(entry, Mapping)
            and not entry.get("subresource")
            and (entry.get("manager") in _OUR_MANAGERS) is is_ours
        ):
            yield entry


def _keys(owned: Any, live: Any, fields: Iterable[str]) -> tuple[str, ...]:
    """Return the path of a field of the live object in the form of a record of ownership.

    In `fields`, a number stands for an item of a list. In the record, a key of the item takes the
    place of the number.
    """
    keys = []
    for field in fields:
        key = f"f:{field}"
        if isinstance(live, list):
            live = live[int(field)] if field.isdecimal() and int(field) < len(live) else ABSENT
            named = owned if isinstance(owned, Mapping) else ()
            key = next((each for each in named if is_key_of(each, live)), key)
        else:
            live = live.get(field) if isinstance(live, Mapping) else ABSENT
        keys.append(key)
        owned = owned.get(key) if isinstance(owned, Mapping) else None
    return tuple(keys)


def _owns(owned: Any, keys: Sequence[str]) -> bool:
    """Return whether a record of ownership contains a field, or the whole value that contains
    it.
    """
    for key in keys:
        if not isinstance(owned, Mapping):
            return False
        if key not in owned:
            # An empty node owns everything below it. A record whose root is empty owns nothing.
            return owned is not None and not owned and key is not keys[0]
        owned = owned[key]
    return True


def _and_others(differences: Sequence[Difference]) -> str:
    more = len(differences) - _FIELDS_TOLD
    return f"; and {more} more" if more > 0 else ""


def _written(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= _VALUE_LIMIT else f"{text[:_VALUE_LIMIT]} ..."

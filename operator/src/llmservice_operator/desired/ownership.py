"""Describes the field managers that change a field of the operator.

They are read from the managedFields of the live object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.desired.comparison import ABSENT, Difference

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
    keys = tuple(f"f:{part}" for part in fields)
    # The refusal may name a field below the one that the other manager has set.
    managers = [manager for manager, _ in _managers(live, keys)]
    if not managers:
        return None
    return f"{refusal.rstrip('.')}. The manager {managers[0]} owns {'.'.join(fields)}."


def _owner(live: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return the part of a message that names the other owner of a field, or says that there is
    none.
    """
    managers = list(_managers(live, keys))
    if not managers:
        return "no other manager owns the field, so an admission webhook or a deletion changes it"
    manager, is_update = managers[0]
    how = "updates" if is_update else "applies"
    return f"the manager {manager} {how} it"


def _managers(live: Mapping[str, Any], keys: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield the name of each other manager of a field, the latest first, and whether its operation
    is Update.
    """
    found = [
        entry
        for entry in live.get("metadata", {}).get("managedFields") or ()
        if isinstance(entry, Mapping)
        and entry.get("manager") not in _OUR_MANAGERS
        and not entry.get("subresource")
        and _owns(entry.get("fieldsV1"), keys)
    ]
    for entry in sorted(found, key=lambda each: str(each.get("time")), reverse=True):
        yield str(entry.get("manager") or "without a name"), entry.get("operation") == "Update"


def _owns(owned: Any, keys: Sequence[str]) -> bool:
    """Return whether a record of ownership contains a field, or the whole value that contains
    it.
    """
    for key in keys:
        if not isinstance(owned, Mapping):
            return False
        if key not in owned:
            # An empty node owns everything below it, but the root of a record owns nothing.
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

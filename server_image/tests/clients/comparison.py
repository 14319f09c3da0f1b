"""Compares whole replies of two servers.

Values that differ between two replies of the same server are not compared.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

TIMES = {"created", "created_at", "completed_at"}
"""Names of values that are points in time."""
RANDOM = re.compile(
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{16,}|(?<=resp_)bGl0ZWxsb[\w=]+"
)
"""Random part of an id: hexadecimal digits, or base64 in LiteLLM's ids. The text before it, such as
`chatcmpl-`, is compared."""
INDEXED = {"choices", "tool_calls"}
"""Names of lists in a stream. Items with the same index are parts of one value."""
TEXTS = {"content", "text", "delta", "arguments", "partial_json", "refusal", "thinking"}
"""Names of values in a stream. All values of one name together are one text."""
COUNTS = {"sequence_number"}
"""Names of values that count the parts of a stream. They are not compared."""
TOLERANCE = 1e-3
"""Relative difference up to which two numbers are equal, for example in a vector."""


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Return the paths at which two comparable replies differ, each with both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        absent = "(absent)"
        return [
            found
            for name in sorted({*ours, *theirs})
            for found in differences(
                ours.get(name, absent), theirs.get(name, absent), f"{path}.{name}".lstrip(".")
            )
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            found
            for number, pair in enumerate(zip(ours, theirs, strict=True))
            for found in differences(*pair, f"{path}[{number}]")
        ]
    if _are_same(ours, theirs):
        return []
    return [f"{path or 'reply'}: {_short(ours)} instead of {_short(theirs)}"]


def comparable(reply: Any, name: str = "") -> Any:
    """Return a reply without times and the random parts of ids, and with the parts of streams
    joined.
    """
    if isinstance(reply, dict):
        if reply.keys() == {"stream"}:
            return together(comparable(reply["stream"]))
        return {key: comparable(value, key) for key, value in reply.items()}
    if isinstance(reply, list):
        return [comparable(each, name) for each in reply]
    if name in TIMES and reply:
        return "(time)"
    return RANDOM.sub("*", reply) if isinstance(reply, str) else reply


def together(parts: Iterable[Any]) -> dict[str, Any]:
    """Return the joined parts of each kind, and the sequence of the kinds under `order`.

    The number of tokens in a part depends on timing. So texts and lists of the same name are
    joined. All other values of a name are listed, without immediate repetitions.
    """
    joined: dict[str, Any] = {"order": []}
    for part in parts:
        kind = str(part.get("type") or part.get("object") or "part")
        if joined["order"][-1:] != [kind]:
            joined["order"].append(kind)
        _add(joined.setdefault(kind, {}), part)
    return joined


def _add(joined: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        if name in COUNTS:
            continue
        if isinstance(value, dict):
            _add(joined.setdefault(name, {}), value)
        elif isinstance(value, str) and name in TEXTS:
            joined[name] = joined.get(name, "") + value
        elif isinstance(value, list):
            if name in INDEXED:
                for number, each in enumerate(value):
                    place = str(each.get("index", number))
                    _add(joined.setdefault(name, {}).setdefault(place, {}), each)
            else:
                joined.setdefault(f"{name} together", []).extend(value)
        else:
            seen = joined.setdefault(f"{name} in turn", [])
            if seen[-1:] != [value]:
                seen.append(value)


def _are_same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(ours == theirs and isinstance(ours, type(theirs)))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"

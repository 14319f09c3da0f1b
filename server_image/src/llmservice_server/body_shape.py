"""Limits the shape of a JSON body before the application parses it.

Parsing and validation run on the event loop that serves every client. The time that they take
depends far more on the number of values in a body than on its length. A megabyte of small arrays
would take minutes.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmservice_server.routes import ROUTE_OF_PATH, Route

_KIBI = 1024

MAX_INPUTS = 2 * _KIBI
"""Maximum number of texts in one request. OpenAI's embeddings API has the same limit. Each text
becomes a request to the engine."""

_MAX_CONTAINERS = 16 * _KIBI
"""Maximum number of arrays and objects. The value is an estimate: a long conversation has a few
thousand of them. Validation takes up to 50 microseconds for each one."""

_MAX_PAIRS = 64 * _KIBI
"""Maximum number of name-value pairs in all objects."""

_MAX_VALUES = 128 * _KIBI
_MAX_VALUES_OF_TOKENS = 1024 * _KIBI
"""Maximum number of values on routes whose prompts may be token ids. It allows a few prompts as
long as the longest context of any model."""

_MAX_REPEATED = 4 * _KIBI * _KIBI
"""Maximum product of the length of a text, in characters, and the number of prompts that contain
it. An example of such a text is a query that is compared with each of many documents. The value is
an estimate: a question of 2,000 characters and 2,000 documents."""

_MAX_SLOW_BYTES = 1024 * _KIBI
"""Maximum length in bytes of a body whose texts vLLM tokenizes on the event loop. For this length,
tokenizing takes half a second."""

_MAX_FORM_FIELDS = 1000

_MAX_LENGTHS: Mapping[str, int] = {
    "stop": 256,
    "stop_sequences": 256,
    "bad_words": 256,
    "stop_token_ids": 4 * _KIBI,
    "logit_bias": 16 * _KIBI,
    "label_token_ids": _KIBI,
    "tools": _KIBI,
}
"""Field -> maximum number of entries. vLLM compares stop texts with each token of the answer."""

_STOP_FIELDS = ("stop", "stop_sequences", "bad_words")
_MAX_STOP_CHARACTERS = 16 * _KIBI
"""Maximum total length of the texts in one of these fields, in characters. vLLM tokenizes bad words
on the event loop that serves every client. Tokenizing this length takes 50 milliseconds."""

_PART_BYTES = 256 * _KIBI
"""Number of bytes that are counted at once, so that a body far above a limit takes no longer than
one that is just above it."""

_END_OF_ESCAPES = re.compile(rb"[^\\]")

_OTHER = Route("", "none of the known routes")

_FEW = 256
"""Number of values in a body up to which no field of the body can have too many entries."""


@dataclass(frozen=True)
class Shape:
    """Shape of an accepted body."""

    inputs: int = 1
    """Number of texts, each of which becomes a request to the engine."""


class BadShape(Exception):
    """The body exceeds a limit; the text names the limit and says what to change."""


def check_shape(route: str | None, content_type: bytes, body: bytes) -> Shape:
    """Return the shape of a body. Raises BadShape if the body exceeds a limit or is not UTF-8.

    The time is linear in the length of the body. A megabyte takes a few milliseconds, or tens of
    milliseconds if it has many values. A body that is not valid JSON passes if it is within the
    limits, because the application refuses it later.
    """
    kind = content_type.partition(b";")[0].strip().lower()
    if kind.startswith(b"multipart/"):
        return Shape()  # the framework limits the number of parts
    if kind == b"application/x-www-form-urlencoded":
        if body.count(b"&") >= _MAX_FORM_FIELDS:
            raise BadShape(f"the form has more than {_MAX_FORM_FIELDS} fields; send fewer")
        return Shape()
    if b"\0" in body[:4] or body.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadShape("the body is not UTF-8; send JSON in UTF-8")
    known = ROUTE_OF_PATH.get(route or "", _OTHER)
    values = _check_counts(body, _MAX_VALUES_OF_TOKENS if known.takes_token_ids else _MAX_VALUES)
    is_slow = known.slow_fields and len(body) > _MAX_SLOW_BYTES
    has_several = values > _FEW or (values > 1 and known.texts)
    if not (is_slow or has_several or _may_have_long_stops(body)):
        return Shape()
    try:
        parsed = json.loads(body)
    except (RecursionError, ValueError):
        return Shape()
    if not isinstance(parsed, dict):
        return Shape()
    _check_slow_fields(known, parsed, len(body))
    return _check_fields(known, parsed)


def _check_counts(body: bytes, max_values: int) -> int:
    """Return an upper bound of the number of values. Raises BadShape if a limit is exceeded."""
    limits = (
        (_MAX_CONTAINERS, "arrays and objects"),
        (_MAX_PAIRS, "names with values"),
        (max_values, "values"),
    )
    counts, excess = _first_excess(_parts(body), limits)
    if excess is not None:
        # Most of the counted characters may belong to a long text, so count again without strings.
        counts, excess = _first_excess(_without_strings(body, max_values), limits)
    if excess is not None:
        limit, name = excess
        raise BadShape(f"the body has more than {limit} {name}; split it into several requests")
    return counts[-1]


def _first_excess(
    parts: Iterable[bytes], limits: Sequence[tuple[int, str]]
) -> tuple[list[int], tuple[int, str] | None]:
    """Count the containers, pairs and values in parts of a body, until one exceeds its limit.

    Return the counts so far, and the limit that is exceeded. The text in strings can make the
    counts too high, but never too low.
    """
    counts = [0, 0, 0]
    for part in parts:
        containers = part.count(b"[") + part.count(b"{")
        counts[0] += containers
        counts[1] += part.count(b":")
        counts[2] += part.count(b",") + containers
        for count, limit in zip(counts, limits, strict=True):
            if count > limit[0]:
                return counts, limit
    return counts, None


def _parts(body: bytes) -> Iterator[bytes]:
    """Yield a body in parts of about _PART_BYTES. No part ends within an escape."""
    start = 0
    while start < len(body):
        found = _END_OF_ESCAPES.search(body, start + _PART_BYTES)
        end = len(body) if found is None else found.end()
        yield body[start:end]
        start = end


def _without_strings(body: bytes, max_values: int) -> Iterator[bytes]:
    """Yield the parts of a body without the content of its strings."""
    quotes = 0
    for part in _parts(body):
        outside = quotes % 2
        pieces = part.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')
        quotes += len(pieces) - 1
        if quotes > 4 * max_values:
            # A value and its name have at most four quotes together, so a valid body with so many
            # quotes exceeds the limit.
            raise BadShape(
                f"the body has more than {max_values} values; split it into several requests"
            )
        yield b"".join(pieces[outside::2])


def _may_have_long_stops(body: bytes) -> bool:
    """Return whether the stop texts of a body may be too long.

    An escape in the name of a field may hide the field, so every long body with escapes counts.
    """
    return len(body) > _MAX_STOP_CHARACTERS and any(
        name in body for name in (b'"stop', b'"bad_words"', rb"\u00")
    )


def _check_fields(route: Route, body: dict[str, object]) -> Shape:
    for name, limit in _MAX_LENGTHS.items():
        entries = body.get(name)
        if isinstance(entries, list | dict) and len(entries) > limit:
            raise BadShape(f"{name} has {len(entries)} entries; it may have at most {limit}")
    for name in _STOP_FIELDS:
        texts = body.get(name)
        length = sum(len(text) for text in _listed(texts) if isinstance(text, str))
        if length > _MAX_STOP_CHARACTERS:
            raise BadShape(
                f"{name} has {length} characters; it may have at most {_MAX_STOP_CHARACTERS}"
            )
    inputs = 1
    for name in route.texts:
        number = _number_of_inputs(body.get(name))
        if number > MAX_INPUTS:
            raise BadShape(
                f"{name} has {number} entries; one request may have at most {MAX_INPUTS}, "
                "so split it into several requests"
            )
        inputs = max(inputs, number)
    if inputs > 1:
        _check_repetition(route, body, inputs)
    return Shape(inputs)


def _check_slow_fields(route: Route, body: dict[str, object], size: int) -> None:
    """Raise BadShape for a long body whose texts vLLM tokenizes on the shared event loop."""
    for name in route.slow_fields:
        if size > _MAX_SLOW_BYTES and body.get(name):
            raise BadShape(
                f"with {name}, a body may have at most {_MAX_SLOW_BYTES} bytes; send fewer texts "
                f"at once, or leave {name} out"
            )


def _check_repetition(route: Route, body: dict[str, object], inputs: int) -> None:
    """Raise BadShape if a text that is repeated in many prompts is too long."""
    for name in (*route.texts, *route.repeated):
        field = body.get(name)
        if field is None or (name in route.texts and _number_of_inputs(field) > 1):
            continue
        length = len(field) if isinstance(field, str) else len(json.dumps(field))
        if length * inputs > _MAX_REPEATED:
            raise BadShape(
                f"{name} has {length} characters and is read with each of {inputs} entries; send "
                f"at most {_MAX_REPEATED // length} entries at once, or a shorter {name}"
            )


def _listed(field: object) -> list[object]:
    return field if isinstance(field, list) else [field]


def _number_of_inputs(field: object) -> int:
    """Return the number of texts in a field; a list of token ids is one text."""
    if isinstance(field, dict):
        field = field["content"] if "content" in field else list(field)
    if not isinstance(field, list) or (field and isinstance(field[0], int)):
        return 1
    return len(field)

"""Generates, from a seed, request bodies in shapes that hurt a server.

A shape is a function that draws a body of about the wanted size for one route. `hurtful_media`
generates media and forms.
"""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server_support import hurtful_media, hurtful_structures, hurtful_texts
from server_support.hostile import FIELDS

MEBIBYTE = 2**20
SMALLEST_BYTES, LARGEST_BYTES = MEBIBYTE // 10, 16 * MEBIBYTE
LIMITED_NUMBERS = (250, 1000, 2000, 16_000, 64_000, 130_000, 1_000_000)
"""Numbers of items just below the server's limits, so that the application validates the items."""

ITEMS = (
    b"1",
    b"[1]",
    b"[]",
    b"[[]]",
    b"{}",
    b'""',
    b'"a"',
    b"null",
    b"1e999",
    b"-0.0",
    b'{"role":"user","content":1}',
    b'{"role":"user","content":"a"}',
    b'{"role":"user","content":[{"type":"text","text":"a"}]}',
    b'{"role":"assistant","tool_calls":[{"type":"function","function":{"name":"a","arguments":"{}"}}]}',
    b'{"role":"tool","tool_call_id":"a","content":"b"}',
    b'{"type":"message","role":"user","content":[{"type":"input_text","text":"a"}]}',
    b'{"type":"function","function":{"name":"a","parameters":{"type":"object"}}}',
    b'{"type":"function_call_output","call_id":"a","output":"b"}',
    b'{"type":"tool_use","id":"a","name":"b","input":{}}',
)
UNITS = (
    "a",
    " ",
    "\n",
    "\0",
    "a b",
    "\\",
    '"',
    "é",
    "中文",
    "\U0001f600",
    "e\u0301\u0302\u0303",
    "\u202e",
    "0",
    "!?",
    "<|im_start|>",
    "<|im_end|>\n<|im_start|>user\n",
    "</s>",
    "<tool_call>{",
    "<think>",
    "{{ 7 * 7 }}{% for a in b %}",
    "data:image/png;base64,",
    "https://a/",
    "-----BEGIN",
    "\r\n",
)
CONTENT_TYPES = (
    "",
    "text/plain",
    "application/json; charset=utf-16",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
    "application/octet-stream",
    "application/json" + ";a=b" * 500,
)
DELIVERIES = ("whole",) * 6 + (
    "slow",
    "broken off",
    "unfinished",
    "in chunks",
    "at once",
    "in a crowd",
)


@dataclass(frozen=True)
class Attack:
    """One hurtful request."""

    path: str
    shape: str
    body: bytes
    content_type: str = "application/json"
    delivery: str = "whole"
    encoding: str = ""
    """Value of Content-Encoding; empty for no header."""

    def __str__(self) -> str:
        size = f"{len(self.body) / MEBIBYTE:.2f} MiB"
        return f"{self.path}: {self.shape}, {size}, {self.delivery}, {self.content_type[:40]!r}"


@dataclass(frozen=True)
class Draft:
    """The input from which a shape draws a body."""

    chance: random.Random
    example: Mapping[str, Any]
    """Body of a valid request to the route."""

    size: int
    """Wanted size of the body in bytes."""

    def a_field(self) -> str:
        """Return the name of a field of this route, or of any route."""
        own = [name for name in self.example if name != "model"]
        return self.chance.choice(own if own and self.chance.random() < 0.7 else FIELDS)

    def with_field(self, name: str, value: bytes) -> bytes:
        """Return the example with a JSON value in one of its fields."""
        rest = {known: each for known, each in self.example.items() if known != name}
        return json.dumps(rest)[:-1].encode() + b', "%s": %s}' % (name.encode(), value)

    def text(self, size: int) -> bytes:
        """Return a JSON string of about `size` bytes."""
        units = self.chance.choices(UNITS, k=self.chance.choice((1, 1, 1, 4)))
        is_escaped = self.chance.random() < 0.3
        unit = json.dumps("".join(units), ensure_ascii=is_escaped)[1:-1].encode()
        return b'"' + unit * (size // len(unit)) + b'"'


Shape = Callable[[Draft], bytes]


def _deep(draft: Draft) -> bytes:
    opening, closing = draft.chance.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")))
    depth = draft.chance.choice((100, 900, 16_000, draft.size // len(opening + closing)))
    nested = opening * depth + b"1" + closing * depth
    return draft.with_field(draft.a_field(), nested)


def _many_items(draft: Draft) -> bytes:
    item = draft.chance.choice(ITEMS)
    most = draft.size // (len(item) + 1)
    number = min(most, draft.chance.choice((*LIMITED_NUMBERS, most)))
    return draft.with_field(draft.a_field(), b"[" + b",".join([item] * number) + b"]")


def _many_texts(draft: Draft) -> bytes:
    """Return a body with a list of long texts that together have the wanted size."""
    number = draft.chance.choice((2, 64, 250, 2000))
    text = draft.text(draft.size // number)
    body = draft.with_field(draft.a_field(), b"[" + b",".join([text] * number) + b"]")
    if draft.chance.random() < 0.3:
        body = body[:-1] + b', "truncate_prompt_tokens": %d}' % draft.chance.choice((-1, 1, 64))
    return body


def _many_names(draft: Draft) -> bytes:
    value = draft.chance.choice((b"1", b'""', b"[]", b"null"))
    most = draft.size // (12 + len(value))
    number = min(most, draft.chance.choice((*LIMITED_NUMBERS, most)))
    names = b",".join(b'"k%08d":%s' % (each, value) for each in range(number))
    if draft.chance.random() < 0.5:
        return draft.with_field(draft.a_field(), b"{" + names + b"}")
    return json.dumps(draft.example)[:-1].encode() + b"," + names + b"}"


def _same_names(draft: Draft) -> bytes:
    name = draft.a_field()
    pair = b'"%s":%s,' % (name.encode(), draft.chance.choice((b"1", b'"a"', b"[]", b"{}")))
    most = draft.size // len(pair)
    number = min(most, draft.chance.choice((*LIMITED_NUMBERS, most)))
    return b"{" + pair * number + json.dumps(draft.example)[1:].encode()


def _biases(draft: Draft) -> bytes:
    number = min(draft.size // 10, draft.chance.choice((1000, 16_000, draft.size // 10)))
    pairs = b",".join(b'"%d":%d' % (each, each % 100) for each in range(number))
    return draft.with_field("logit_bias", b"{" + pairs + b"}")


def _long_number(draft: Draft) -> bytes:
    digits = draft.chance.choice((b"9", b"0.", b"-1", b"1e", b"0"))
    return draft.with_field(draft.a_field(), digits + b"7" * draft.size)


def _long_numbers(draft: Draft) -> bytes:
    number = draft.chance.choice((b"9", b"0.", b"-1")) + b"3" * draft.chance.choice((17, 300, 4290))
    count = draft.size // (len(number) + 1)
    return draft.with_field(draft.a_field(), b"[" + b",".join([number] * count) + b"]")


def _long_text(draft: Draft) -> bytes:
    body = draft.with_field(draft.a_field(), draft.text(draft.size))
    if draft.chance.random() < 0.2:
        body = body[:-1] + b', "truncate_prompt_tokens": %d}' % draft.chance.choice((-1, 1, 64))
    return body


def _wide_text(draft: Draft) -> bytes:
    """Return a body with a text whose last character makes Python use four bytes per character."""
    text = b'"' + b"a" * draft.size + "\U0001f600".encode() + b'"'
    return draft.with_field(draft.a_field(), text)


def _escapes(draft: Draft) -> bytes:
    unit = draft.chance.choice(
        (rb"\u0041", rb"\ud83d\ude00", rb"\ud800", rb"\udc00\ud800", rb"\\", rb"\"", rb"\u0000")
    )
    return draft.with_field(draft.a_field(), b'"' + unit * (draft.size // len(unit)) + b'"')


def _spaces(draft: Draft) -> bytes:
    spaces = draft.chance.choice((b" ", b"\n", b"\t", b"\r\n")) * draft.size
    body = json.dumps(draft.example).encode()
    where = draft.chance.choice((0, 1, len(body)))
    return body[:where] + spaces + body[where:]


def _unfinished(draft: Draft) -> bytes:
    unit = draft.chance.choice((b"[", b"{", b'{"a":', b'"', b'["', b"[1,", b'\\"[', b"tru", b"-"))
    body = json.dumps(draft.example)[:-1].encode()
    return body + b', "a": ' + unit * (draft.size // len(unit))


def _garbage(draft: Draft) -> bytes:
    kind = draft.chance.randrange(3)
    if kind == 0:
        return draft.chance.randbytes(draft.size)
    unit = draft.chance.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf0\x9f", b"\0", b"\x7f"))
    if kind == 1:
        return unit * (draft.size // len(unit))
    return draft.with_field(draft.a_field(), b'"' + unit * (draft.size // len(unit)) + b'"')


def _other_encoding(draft: Draft) -> bytes:
    text = _many_items(draft).decode()
    return text.encode(draft.chance.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig")))


def _long_stops(draft: Draft) -> bytes:
    number = draft.chance.choice((4, 256))
    text = draft.text(draft.size // number)
    name = draft.chance.choice(("stop", "stop_sequences", "bad_words"))
    return draft.with_field(name, b"[" + b",".join([text] * number) + b"]")


def _of_structures(draft: Draft) -> bytes:
    name, value = hurtful_structures.a_structure(draft.chance, draft.size)
    return draft.with_field(name, json.dumps(value).encode())


def _of_tools(draft: Draft) -> bytes:
    tools = hurtful_structures.tools(draft.chance, draft.size)
    return draft.with_field("tools", json.dumps(tools).encode())


def _of_media(draft: Draft) -> bytes:
    return draft.with_field("messages", json.dumps(_media_messages(draft)).encode())


def _media_messages(draft: Draft) -> list[Any]:
    parts = hurtful_media.parts(draft.chance, draft.size)
    return [{"role": "user", "content": parts}]


def _embeds(draft: Draft) -> bytes:
    encoded = hurtful_media.encoded_tensors(draft.chance, draft.size)
    return draft.with_field("prompt_embeds", json.dumps(encoded).encode())


def _long_prompt(draft: Draft) -> bytes:
    body = hurtful_texts.with_long_prompt(draft.chance, draft.example, draft.size)
    return json.dumps(body, ensure_ascii=False).encode()


SHAPES: Mapping[str, Shape] = {
    "a long prompt": _long_prompt,
    "deep nesting": _deep,
    "many items": _many_items,
    "long texts": _many_texts,
    "many names": _many_names,
    "one name many times": _same_names,
    "many biases": _biases,
    "a long number": _long_number,
    "long numbers": _long_numbers,
    "a long text": _long_text,
    "a wide text": _wide_text,
    "escapes": _escapes,
    "spaces": _spaces,
    "no end": _unfinished,
    "garbage": _garbage,
    "another encoding": _other_encoding,
    "long stop texts": _long_stops,
    "a structure": _of_structures,
    "tools": _of_tools,
    "media": _of_media,
    "encoded tensors": _embeds,
}


def attacks(
    seed: int, examples: Mapping[str, Any], forms: Sequence[str], number: int
) -> Iterator[Attack]:
    """Yield attacks on each route in turn. The same seed always gives the same attacks.

    `examples` contains a valid body for each route that reads JSON. `forms` are the paths of the
    routes that read forms.
    """
    chance = random.Random(seed)
    paths = [*examples, *forms]
    shapes: list[str] = []
    for place in range(number):
        path = paths[place % len(paths)]
        size = round(math.exp(chance.uniform(math.log(SMALLEST_BYTES), math.log(LARGEST_BYTES))))
        delivery = chance.choice(DELIVERIES)
        encoding = chance.choice(("gzip", "identity", "br")) if chance.random() < 0.05 else ""
        if path in forms and chance.random() < 0.8:
            form = hurtful_media.a_form(chance, size)
            if form.shape in hurtful_media.HEARD:
                delivery = "whole"  # many copies would be ordinary load, not a hurtful body
            yield Attack(path, form.shape, form.body, form.content_type, delivery, encoding)
            continue
        if not shapes:
            shapes = chance.sample(list(SHAPES), len(SHAPES))
        shape = shapes.pop()
        body = SHAPES[shape](Draft(chance, examples.get(path, {}), size))
        kind = "application/json" if chance.random() < 0.9 else chance.choice(CONTENT_TYPES)
        yield Attack(path, shape, body[: 2 * LARGEST_BYTES], kind, delivery, encoding)

"""Turns the body of a request into the chain of hashes by which cached prefixes are found."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from llmservice_operator.routing.answers import NO_SOURCE
from llmservice_operator.routing.prefixes import BLOCK_BYTES

MOST_BYTES: Final = 1 << 20
"""Maximum number of bytes of the canonical form that are hashed. The rest is not compared."""

PROMPT_FIELDS: Final = (
    "tools",
    "functions",
    "system",
    "instructions",
    "messages",
    "input",
    "prompt",
    "query",
    "documents",
)
"""Fields of all routes that become a part of the prompt, in the order of most chat templates.

If a template puts the tools after the system message, this order works too, because requests mostly
share both or neither.
"""

MEDIA_KEYS: Final = frozenset({"url", "image_url", "data", "file_data", "audio_url", "video_url"})
LEAST_MEDIA_CHARACTERS: Final = 512
"""Minimum length of a string that a digest replaces. A shorter one, such as the URL of an image,
is kept as it is."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the router knows of a prompt."""

    chain: Sequence[int]
    """Hashes of the complete blocks of the canonical form. Each hash also covers all earlier
    blocks."""
    size: int
    """Bytes of text, without images, audio and video."""
    media: int = 0
    """Number of images, pieces of audio and videos."""
    adapter: str = ""
    """Name of the adapter that answers, or of the model if no adapter does."""
    source: int = NO_SOURCE
    """Source of the request, which tells the expected length of the answer."""


def prompt_of(body: Mapping[str, Any], adapter: str) -> Prompt:
    """Return the prompt in a body that was parsed from JSON.

    `adapter` is the name of the adapter that answers, or of the model if no adapter does.
    Spaces and the order of keys make no difference. Images, audio and video count by their digest.
    A cache salt separates prompts, as it does in vLLM.
    """
    media: list[int] = []
    names = [name for name in PROMPT_FIELDS if name in body]
    parts: list[bytes] = []
    for name in names:
        _write(body[name], parts, media)
    text = b"".join(parts)
    root = _encode(_json([adapter, body.get("cache_salt"), names]))
    chain = tuple(_chain(root, text[:MOST_BYTES]))
    return Prompt(chain, len(text), len(media), adapter)


def _chain(root: bytes, text: bytes) -> Iterator[int]:
    digest = blake2b(root, digest_size=8).digest()
    for at in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES):
        digest = blake2b(digest + text[at : at + BLOCK_BYTES], digest_size=8).digest()
        yield int.from_bytes(digest)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _write(value: Any, parts: list[bytes], media: list[int]) -> None:
    """Append the canonical form of a value to `parts`.

    The form is like JSON, with sorted keys, no spaces, and a comma after every item. Strings are
    copied without escapes, because the escapes of a long prompt would take most of the time. A
    digest replaces each long piece of media, whose length is appended to `media`. A JSON parser
    bounds the depth, so the recursion is bounded too.
    """
    if isinstance(value, str):
        parts += (b'"', _encode(value), b'"')
    elif isinstance(value, dict):
        parts.append(b"{")
        for key in sorted(value):
            each = value[key]
            if key in MEDIA_KEYS and isinstance(each, str) and len(each) >= LEAST_MEDIA_CHARACTERS:
                each = _digest(each, media)
            parts += (_encode(key), b":")
            _write(each, parts, media)
            parts.append(b",")
        parts.append(b"}")
    elif isinstance(value, list) and any(isinstance(each, (str, dict, list)) for each in value):
        parts.append(b"[")
        for each in value:
            _write(each, parts, media)
            parts.append(b",")
        parts.append(b"]")
    else:
        parts.append(_encode(_json(value)))


def _digest(text: str, media: list[int]) -> str:
    media.append(len(text))
    return blake2b(_encode(text), digest_size=16).hexdigest()


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")

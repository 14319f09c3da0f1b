"""Puts megabytes of text, or of token ids, into the fields from which a route reads its prompt."""

import random
from collections.abc import Iterator
from typing import Any

_NO_TEXT = ("model", "role", "type", "embedding_types")
"""Fields whose texts are names, which the server compares with known names."""

_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"return_token_strs": True},
    {"return_token_ids": True},
    {"echo": True, "logprobs": 1},
    {"prompt_logprobs": 1},
    {"truncate_prompt_tokens": -1},
    {"truncation": "auto"},
    {"stream": True},
    {"max_tokens_per_doc": 64, "max_tokens_per_query": 64},
)
"""Fields that make the server do more with each token of a prompt."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ALPHABETS = (_LETTERS, "01", "!?.,;:-", "\u4e00\u4e8c\u4e09\u56db\u4e94", "\U0001f600\u200d\ufe0f")


def with_long_prompt(chance: random.Random, example: Any, size: int) -> Any:
    """Return the body of a valid request, with a long prompt in place of a short one.

    A body without a prompt is returned unchanged.
    """
    places = list(_places(example, ()))
    if not places:
        return example
    path, value = chance.choice(places)
    fill = _tokens(chance, size) if isinstance(value, list) else _text(chance, size)
    return {**_replaced(example, path, fill), **chance.choice(_OPTIONS)}


def _places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield each text of a prompt and each list of token ids, with the path to it."""
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        yield path, value
    elif isinstance(value, dict):
        for name, each in value.items():
            if name not in _NO_TEXT:
                yield from _places(each, (*path, name))
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _places(each, (*path, place))


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of nested dicts and lists with another value at the end of the path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copy


def _text(chance: random.Random, size: int) -> str:
    """Return a text of different words, or one long word of random characters."""
    if chance.random() < 0.5:
        words = ["".join(chance.choices(_LETTERS, k=chance.randint(1, 12))) for _ in range(5000)]
        part = " ".join(words) + " "
    else:
        part = "".join(chance.choices(chance.choice(_ALPHABETS), k=20_000))
    return part * (size // len(part.encode()) + 1)


def _tokens(chance: random.Random, size: int) -> list[int]:
    number = min(size // 5, chance.choice((8000, 100_000, 1_000_000)))
    return chance.choices(range(200), k=1000) * (number // 1000)

"""Reads the bodies of requests, because the choice of a replica depends on the prompt."""

import asyncio
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from typing import Any, Final, NamedTuple

from pydantic_core import from_json

from llmservice_operator.routing.prompts import Prompt, prompt_of

INLINE_BYTES: Final = 16 * 1024
"""Longest body, in bytes, that is read on the event loop, where it delays all other requests."""

MAX_COMMAS: Final = 64 * 1024
"""Largest number of commas in a body that is parsed as JSON. They separate its values. With more
values, the parser would block the interpreter for too long, so the body counts as text."""

_ANSWER_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Fields with the maximum length of an answer, in all APIs."""

MOST_TOKENS: Final = 10**12
"""Numbers above this one count as this one."""

_STREAM: Final = re.compile(rb'"stream"\s*:\s*true')


class Body(NamedTuple):
    """A request's body. Only the beginning of a long one is known."""

    prompt: Prompt
    size: int
    """Number of bytes that are known."""
    is_stream: bool
    """Whether the client expects a stream of events."""
    digest: bytes
    previous: str = ""
    """Identifier of the stored response that the request continues; empty if there is none."""
    is_text: bool = True
    """Whether the body is JSON, so that its size tells the number of tokens."""
    answer_tokens: int | None = None
    """Maximum length of each answer in tokens. None if the client sets no limit."""
    answers: int = 1
    """Number of answers that the client asks for."""


NO_BODY: Final = Body(Prompt((), 0), 0, False, b"")


class BodyReader:
    """Reads long bodies one at a time, in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bodies")

    async def read(self, body: bytes, announced: int | None) -> Body:
        """Return what a body contains. `announced` is the length of the whole body, if known."""
        if len(body) <= INLINE_BYTES:
            return read_body(body, announced)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, read_body, body, announced)


def read_body(body: bytes, announced: int | None = None) -> Body:
    """Return what a body, or its beginning, contains.

    The whole text of a body that is not JSON counts as the prompt.
    """
    unseen, previous, answer = max(0, (announced or 0) - len(body)), "", _Answer()
    digest = sha256(b"%d " % unseen)
    digest.update(body)
    parsed = _parse(body)
    if parsed is None:
        prompt = prompt_of({"prompt": body.decode("utf-8", "replace")}, "")
        is_stream = _STREAM.search(body) is not None
    else:
        prompt = prompt_of(parsed, str(parsed.get("model", "")))
        is_stream = parsed.get("stream") is True
        if isinstance(continued := parsed.get("previous_response_id"), str):
            previous = continued
        answer = _answer_of(parsed)
    whole = replace(prompt, size=prompt.size + unseen)
    is_text = parsed is not None or body.lstrip().startswith(b"{")
    return Body(whole, len(body), is_stream, digest.digest(), previous, is_text, *answer)


class _Answer(NamedTuple):
    tokens: int | None = None
    number: int = 1


def _answer_of(body: Mapping[str, Any]) -> _Answer:
    """Return how many tokens each answer to a request may have, and how many answers it has."""
    limits = [found for name in _ANSWER_LIMITS if (found := _number(body.get(name))) is not None]
    prompts = body.get("prompt")
    # A list of numbers is one prompt.
    parts = prompts if isinstance(prompts, list) else []
    several = len(parts) if any(isinstance(each, (str, list)) for each in parts) else 1
    each = max(_number(body.get("n")) or 1, _number(body.get("best_of")) or 1)
    return _Answer(max(limits, default=None), each * several)


def _number(value: Any) -> int | None:
    """Return a whole number that is not negative; None for any other value."""
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return min(value, MOST_TOKENS) if is_number else None


def _parse(body: bytes) -> Mapping[str, Any] | None:
    """Return the JSON object in a body, which may be cut off; None if it is not read as JSON."""
    if body.count(b",") > MAX_COMMAS:
        return None
    try:
        parsed = from_json(body, allow_partial="trailing-strings")
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None

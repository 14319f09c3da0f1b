"""The HTTP session through which Kopf lists and watches: no answer to one stream ends the others.

Kopf ends every watch because of one answer that it does not expect: a kind that is gone, a page of
a proxy, a line that is cut off. It also connects anew without a pause to a server that ends each
watch at once. So what reaches Kopf is checked here, stream by stream:

- A request that is refused is made again after a growing pause, and the trouble is reported.
- A watch that gets something else than an event is listed anew.
- Watches that end soon are begun again after a growing pause.
"""

import asyncio
import json
import logging
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import aiohttp

logger = logging.getLogger(__name__)

SHORT_SECONDS = 5.0
"""A watch that ends sooner is too short: the API server keeps one for minutes."""
LONGEST_PAUSE_SECONDS = 8.0
"""Between two watches that are too short. Events come late by as much."""
LONGEST_RETRY_SECONDS = 60.0
"""Between two requests that are refused."""
TOLD_AFTER = 2
"""Refusals of a stream in a row before it is a trouble: one may come with a change of leaders."""
UNAUTHORIZED = 401
GONE = 410
_NOT_THE_SERVERS = "the answer is not one of the API server, but perhaps of a proxy"
_EXPIRED = {"type": "ERROR", "object": {"code": GONE, "message": "to be listed anew"}}

OnTrouble = Callable[[str, str | None], None]
"""Takes the path of a stream and what is wrong with it; None once nothing is."""


def open_session(
    guard: "StreamGuard", ssl_context: ssl.SSLContext, headers: Mapping[str, str], proxy: str | None
) -> aiohttp.ClientSession:
    """Return a session for the watches; the caller closes it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=ssl_context),
        headers=headers,
        proxy=proxy,
        middlewares=(guard,),
        response_class=_Response,
    )


@dataclass
class _Stream:
    """What is known of the requests to one path."""

    watched_at: float = 0.0
    short_watches: int = 0
    refusals: int = 0
    is_in_trouble: bool = False


class StreamGuard:
    """Client middleware of aiohttp. It outlives its session: a new login opens another."""

    def __init__(self, on_trouble: OnTrouble) -> None:
        self._on_trouble = on_trouble
        self._streams: dict[str, _Stream] = {}

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        path = request.url.path
        stream = self._streams.setdefault(path, _Stream())
        is_watch = "watch" in request.url.query
        if is_watch:
            await self._pace(stream)
        while True:
            response = cast(_Response, await handler(request))
            if is_watch and response.status == GONE:
                response.expire()
            problem = await _problem(response, is_watch=is_watch)
            if problem is None or response.status == UNAUTHORIZED:
                if problem is None:
                    self._settle(path, stream)
                return response
            pause = _pause_seconds(stream.refusals, response.headers.get("Retry-After", ""))
            response.close()
            self._refuse(path, stream, problem)
            await asyncio.sleep(pause)

    async def _pace(self, stream: _Stream) -> None:
        clock = asyncio.get_running_loop()
        is_short = stream.watched_at and clock.time() - stream.watched_at < SHORT_SECONDS
        stream.short_watches = stream.short_watches + 1 if is_short else 0
        # The first end may be a restart of the server, and its events must not come late.
        if stream.short_watches > 1:
            pause = min(2.0 ** min(stream.short_watches - 2, 16), LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
        stream.watched_at = clock.time()

    def _refuse(self, path: str, stream: _Stream, problem: str) -> None:
        stream.refusals += 1
        if stream.refusals >= TOLD_AFTER and not stream.is_in_trouble:
            stream.is_in_trouble = True
            logger.warning("nothing can be watched at %s: %s", path, problem)
            self._on_trouble(path, problem)

    def _settle(self, path: str, stream: _Stream) -> None:
        stream.refusals = 0
        if stream.is_in_trouble:
            stream.is_in_trouble = False
            self._on_trouble(path, None)


class _Response(aiohttp.ClientResponse):
    """An answer whose lines, if it is that of a watch, are events and nothing else."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        await super().start(connection)
        if "watch" in self.url.query:
            self.content = cast(aiohttp.StreamReader, _Events(self.content))
        return self

    def expire(self) -> None:
        """Turn a refusal because of an old version into the event by which Kopf lists anew."""
        self.status = 200
        self.content = cast(aiohttp.StreamReader, _Events(self.content, is_expired=True))


class _Events:
    """The content of a watch; everything but its lines is left to the original."""

    def __init__(self, content: aiohttp.StreamReader, *, is_expired: bool = False) -> None:
        self._content = content
        self._is_expired = is_expired

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Yield whole lines, each of them an event."""
        rest = b""
        if not self._is_expired:
            async for chunk in self._content.iter_chunked(size):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(bytes.strip, lines):
                    if not is_event(line):
                        logger.warning("a watch got no event, but %r", line[:200])
                        yield _as_line(_EXPIRED)
                        return
                    yield line + b"\n"
            # A line that is cut off will come again, because its version was not seen.
            return
        yield _as_line(_EXPIRED)


def is_event(line: bytes) -> bool:
    """Return whether a line of a watch is an event that Kopf can deal with."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
        return False
    if event.get("type") == "ERROR":
        return bool(event["object"].get("code") == GONE)
    return isinstance(event.get("type"), str) and isinstance(event["object"].get("metadata"), dict)


async def _problem(response: aiohttp.ClientResponse, *, is_watch: bool) -> str | None:
    """Return what is wrong with an answer; None for one that is as expected.

    The events of a watch are checked as they come.
    """
    try:
        if response.status >= 400:
            return f"{response.status}: {(await response.text(errors='replace'))[:500]}"
        if is_watch:
            return _NOT_THE_SERVERS if response.content_type == "text/html" else None
        found = json.loads(await response.read())
    except (ValueError, RecursionError, aiohttp.ClientPayloadError):
        return _NOT_THE_SERVERS
    return None if isinstance(found, dict) else _NOT_THE_SERVERS


def _pause_seconds(refusals: int, retry_after: str) -> float:
    pause = min(2.0 ** min(refusals, 16), LONGEST_RETRY_SECONDS) * random.uniform(0.8, 1.2)
    asked = float(retry_after) if retry_after.isdecimal() else 0.0
    return max(pause, min(asked, LONGEST_RETRY_SECONDS))


def _as_line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"

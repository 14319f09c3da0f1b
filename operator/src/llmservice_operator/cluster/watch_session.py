"""The HTTP session with which Kopf lists and watches. One bad response does not end the other
streams.

Kopf ends all of its watches after one unexpected response, such as a 404 for a removed kind, a page
of a proxy, or a truncated line. Kopf also reconnects every second to a server that closes each
watch immediately. So this module checks the responses of each stream before Kopf gets them:

- A refused request is repeated after a growing pause, and reported through `on_trouble`.
- If a watch returns anything other than an event, its objects are listed again.
- Watches that end early are started again after a growing pause.
- A list whose next page has expired begins again with the first page.
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
"""Duration in seconds below which a watch is too short. The API server keeps a watch open for
minutes."""
LONGEST_PAUSE_SECONDS = 8.0
"""Longest pause in seconds between two watches that are too short. The pause varies at random by up
to 20 %. Events can be late by this time."""
LONGEST_RETRY_SECONDS = 60.0
"""Longest pause in seconds between a refused request and the next attempt. The pause varies at
random by up to 20 %."""
TOLD_AFTER = 2
"""Number of consecutive refusals of a stream after which they are reported. A single refusal may be
temporary, for example during a change of leaders."""
UNAUTHORIZED = 401
GONE = 410
_NOT_THE_SERVERS = "the answer is not one of the API server, but perhaps of a proxy"
_EXPIRED = {"type": "ERROR", "object": {"code": GONE, "message": "to be listed anew"}}

OnTrouble = Callable[[str, str | None], None]
"""Called with the URL path of a stream and its problem, and with None once the problem has
ended."""


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
    """State of the requests to one path."""

    watched_at: float = 0.0
    short_watches: int = 0
    refusals: int = 0
    is_in_trouble: bool = False


class StreamGuard:
    """Client middleware of aiohttp. It outlives its session, because a new login opens another
    session.
    """

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
            problem = await _problem(response, request.url.query)
            if problem is None or response.status == UNAUTHORIZED:
                if problem is None:
                    self._settle(path, stream)
                return response
            if response.status == GONE and "continue" in request.url.query:
                # The list begins again. Kopf keeps the objects of the earlier pages, and adds those
                # of the new list.
                request.url = request.url.without_query_params("continue")
            pause = _pause_seconds(stream.refusals, response.headers.get("Retry-After", ""))
            response.close()
            self._refuse(path, stream, problem)
            await asyncio.sleep(pause)

    async def _pace(self, stream: _Stream) -> None:
        clock = asyncio.get_running_loop()
        is_short = stream.watched_at and clock.time() - stream.watched_at < SHORT_SECONDS
        stream.short_watches = stream.short_watches + 1 if is_short else 0
        # The first early end may come from a restart of the server, and must not delay later
        # events.
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
    """Response to a request of Kopf.

    The content of a watch is filtered to lines that are events.
    """

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        await super().start(connection)
        if "watch" in self.url.query:
            self.content = cast(aiohttp.StreamReader, _Events(self.content))
        return self

    def expire(self) -> None:
        """Turn the refusal of an old version into the event that makes Kopf list again."""
        self.status = 200
        self.content = cast(aiohttp.StreamReader, _Events(self.content, is_expired=True))


class _Events:
    """Content of a watch, reduced to the lines that Kopf can process."""

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
            # A truncated line is dropped. Its event arrives again, because Kopf watches again from
            # the last event that it has seen.
            return
        yield _as_line(_EXPIRED)


def is_event(line: bytes) -> bool:
    """Return whether a line of a watch is an event that Kopf can process."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
        return False
    if event.get("type") == "ERROR":
        return bool(event["object"].get("code") == GONE)
    return isinstance(event.get("type"), str) and isinstance(event["object"].get("metadata"), dict)


async def _problem(response: aiohttp.ClientResponse, query: Mapping[str, str]) -> str | None:
    """Return the problem of a response, or None if the response is expected.

    The events of a watch are checked as they arrive.
    """
    try:
        if response.status >= 400:
            return f"{response.status}: {(await response.text(errors='replace'))[:500]}"
        if "watch" in query:
            return _NOT_THE_SERVERS if response.content_type == "text/html" else None
        found = json.loads(await response.read())
    except (ValueError, RecursionError, aiohttp.ClientPayloadError):
        return _NOT_THE_SERVERS
    # Kopf sends a limit with every list, and none with a discovery request.
    is_expected = _is_list(found) if "limit" in query else isinstance(found, dict)
    return None if is_expected else _NOT_THE_SERVERS


def _is_list(found: Any) -> bool:
    """Return whether a response is a list of objects that Kopf can process."""
    items = found.get("items") if _has_metadata(found) else None
    return isinstance(items, list) and all(map(_has_metadata, items))


def _has_metadata(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("metadata"), dict)


def _pause_seconds(refusals: int, retry_after: str) -> float:
    pause = min(2.0 ** min(refusals, 16), LONGEST_RETRY_SECONDS) * random.uniform(0.8, 1.2)
    asked = float(retry_after) if retry_after.isdecimal() else 0.0
    return max(pause, min(asked, LONGEST_RETRY_SECONDS))


def _as_line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"

"""The process that holds the requests which no replica can take.

Envoy sends a request here if it has no other endpoint for it, or if the picker says so. The
forwarder sends the request to Envoy's second listener, which knows only replicas, and repeats this
until a replica answers. The forwarder is a separate process, because it must work while the picker
does not.
"""

import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import aiohttp
import uvloop
from aiohttp import hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from pydantic_core import from_json
from yarl import URL

from llmservice_operator.errors import InvalidSettings
from llmservice_operator.names import ATTEMPT_HEADER, HELD_HEADER
from llmservice_operator.router.envoy_names import (
    FORWARDED_SOCKET,
    NO_REPLICA_HEADER,
    SILENCE_SECONDS,
)
from llmservice_operator.router.held import HeldRequests, TooManyHeld
from llmservice_operator.router.waiting_stream import WaitingStream, refusal
from llmservice_operator.router_settings import ROUTER_PREFIX, RouterSettings
from llmservice_operator.tasks import Tasks

logger = logging.getLogger(__name__)

METRICS_SOCKET: Final = "forwarder.sock"
"""Socket in the run directory at which the supervisor reads the metrics."""

RETRY_SECONDS: Final = 0.25
"""Time in seconds between two attempts to send a request through Envoy while it has no replica."""

CONNECT_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 120.0
"""Time in seconds after which the forwarder closes an idle connection from Envoy. Envoy's own limit
is shorter."""

_LONG_HEADERS: Final[Mapping[str, Any]] = {
    # The limits exceed Envoy's, because Envoy has accepted the headers and adds others.
    "max_line_size": 64 * 1024,
    "max_field_size": 64 * 1024,
    "max_headers": 200,
}
LONGEST_ERROR: Final = 64 * 1024
"""Longest error response of a replica, in bytes, whose message becomes an event."""

_OF_ONE_CONNECTION: Final = frozenset(
    {
        *("connection", "keep-alive", "transfer-encoding", "content-length", "te", "trailer"),
        *("upgrade", "expect", "proxy-connection", HELD_HEADER, ATTEMPT_HEADER),
    }
)
"""Headers that are not passed on."""

_STREAM: Final = re.compile(rb'"stream"\s*:\s*true')
"""Pattern in every body that asks for a stream. In a prompt, the quotes would be escaped."""

_DIGITS: Final = re.compile("[0-9]{1,7}")

_FULL: Final = "no replica is available, and too many requests wait already; send it again later"
_LATE: Final = "no replica became available in time; send the request again later"
_CUT: Final = "the replica ended in the middle of its answer; send the request again"


class _TooLate(Exception):
    """No replica answered before the deadline."""


class _TooLong(Exception):
    """The body exceeds the limit."""


def run_forwarder(settings: RouterSettings) -> int:
    """Serve until a signal, or until the supervisor closes the standard input."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Forwarder(settings).run())


class Forwarder:
    """The server, the requests that it holds, and the client of Envoy's second listener."""

    def __init__(
        self, settings: RouterSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._held = HeldRequests(settings.max_held_requests, settings.max_held_bytes)
        self._session: aiohttp.ClientSession
        self._registry = CollectorRegistry()
        waiting = Gauge(
            "llmservice_router_forwarder_waiting_requests",
            "Requests in the forwarder that wait for a replica",
            registry=self._registry,
        )
        waiting.set_function(lambda: self._held.number)
        self._requests = Counter(
            "llmservice_router_forwarded_requests",
            "Requests that waited in the forwarder, by result",
            ("result",),
            registry=self._registry,
        )

    async def run(self) -> int:
        """Serve until the end. Raises InvalidSettings if the port is taken."""
        tasks = Tasks()
        async with self.serving():
            tasks.heed_signals()
            tasks.start("parent", _wait_for_parent(tasks.stop))
            await tasks.stop.wait()
            await tasks.cancel_all()
        return 1 if tasks.failed else 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while the context is open. Raises InvalidSettings if the port is taken."""
        settings = self._settings
        server = web.Server(
            self._count,
            handler_cancellation=True,  # a client that leaves frees its place
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=IDLE_SECONDS,
            logger=_server_logger(),
            **_LONG_HEADERS,
        )
        requests = web.ServerRunner(server, shutdown_timeout=0)
        metrics = web.AppRunner(self._metrics_app(), access_log=None)
        connector = aiohttp.UnixConnector(str(settings.run_directory / FORWARDED_SOCKET), limit=0)
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=CONNECT_SECONDS,
            sock_read=settings.hold_timeout_seconds + SILENCE_SECONDS,
        )
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            **_LONG_HEADERS,
        ) as self._session:
            await requests.setup()
            await metrics.setup()
            try:
                await self._listen(requests, metrics)
                yield
            finally:
                await requests.cleanup()
                await metrics.cleanup()

    async def _listen(self, requests: web.BaseRunner, metrics: web.BaseRunner) -> None:
        port = self._settings.forwarder_port
        try:
            await web.TCPSite(requests, "127.0.0.1", port).start()
        except OSError as error:
            raise InvalidSettings(
                f"port {port} cannot be served: {error.strerror or error}; set "
                f"{ROUTER_PREFIX}FORWARDER_PORT to a free one"
            ) from error
        socket = self._settings.run_directory / METRICS_SOCKET
        socket.unlink(missing_ok=True)
        await web.UnixSite(metrics, str(socket)).start()

    def _metrics_app(self) -> web.Application:
        async def show(_: web.Request) -> web.Response:
            return web.Response(body=generate_latest(self._registry))

        app = web.Application()
        app.router.add_get("/metrics", show)
        return app

    async def _count(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            result, response = await self._handle(request)
        except asyncio.CancelledError:
            self._requests.labels("client_left").inc()
            raise
        except aiohttp.ClientConnectionResetError:
            result, response = "client_left", web.Response()
        self._requests.labels(result).inc()
        return response

    async def _handle(self, request: web.BaseRequest) -> tuple[str, web.StreamResponse]:
        """Answer a request. Return the result for the metrics, and the response."""
        since = self._clock() - _seconds(request.headers.get(HELD_HEADER))
        stream = WaitingStream(request)
        try:
            with self._held.holding(request.content_length or 0) as count:
                body = await self._read(request, count)
                is_stream = await asyncio.to_thread(_asks_for_stream, request, body)
                answer = await self._first_answer(
                    request, body, since, stream if is_stream else None
                )
                del body
        except TooManyHeld:
            return "refused", refusal(_FULL, HTTPStatus.SERVICE_UNAVAILABLE)
        except _TooLong:
            limit = self._settings.max_body_bytes
            message = f"the body is larger than {limit} bytes; send a shorter one"
            return "refused", refusal(message, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        except _TooLate:
            return "late", await stream.fail(_LATE, HTTPStatus.SERVICE_UNAVAILABLE)
        except aiohttp.ClientConnectionResetError:
            raise  # the client has left
        except aiohttp.ClientError as error:
            logger.warning("a request to Envoy failed: %s", type(error).__name__)
            return "failed", await stream.fail(_CUT, HTTPStatus.BAD_GATEWAY)
        async with answer:
            return await self._pass_on(request, answer, stream)

    async def _read(self, request: web.BaseRequest, count: Callable[[int], None]) -> bytes:
        """Return the body. Raises _TooLong or TooManyHeld as soon as a limit is exceeded."""
        limit = self._settings.max_body_bytes
        if (request.content_length or 0) > limit:
            raise _TooLong
        parts = bytearray()
        async for chunk in request.content.iter_any():
            if request.content_length is None:
                count(len(chunk))
            if len(parts) + len(chunk) > limit:
                raise _TooLong
            parts += chunk
        return bytes(parts)

    async def _first_answer(
        self, request: web.BaseRequest, body: bytes, since: float, stream: WaitingStream | None
    ) -> aiohttp.ClientResponse:
        """Return the response of a replica as soon as its headers have arrived.

        Until then, send comments to a client that expects a stream. Raises _TooLate at the
        deadline, and ClientError if Envoy ends.
        """
        settings = self._settings
        deadline = since + settings.hold_timeout_seconds
        beat = since + settings.heartbeat_seconds
        asking = asyncio.ensure_future(self._ask(request, body, since))
        try:
            while not asking.done():
                now = self._clock()
                if now >= deadline:
                    raise _TooLate
                if stream is not None and now >= beat:
                    await stream.comment()
                    beat = now + settings.heartbeat_seconds
                until = deadline if stream is None else min(beat, deadline)
                await asyncio.wait([asking], timeout=max(until - now, 0))
            return asking.result()
        finally:
            asking.cancel()

    async def _ask(
        self, request: web.BaseRequest, body: bytes, since: float
    ) -> aiohttp.ClientResponse:
        """Send the request to Envoy again and again until a replica answers."""
        url = URL(f"http://replicas{request.raw_path}", encoded=True)
        headers = _passed_on(request.headers)
        while True:
            headers[HELD_HEADER] = str(round(1000 * (self._clock() - since)))
            try:
                answer = await self._session.request(
                    request.method,
                    url,
                    headers=headers,
                    data=body or None,
                    allow_redirects=False,
                )
            except aiohttp.ClientConnectorError:
                pass  # Envoy has not started yet
            else:
                if NO_REPLICA_HEADER not in answer.headers:
                    return answer
                answer.release()
            await asyncio.sleep(RETRY_SECONDS)

    async def _pass_on(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse, stream: WaitingStream
    ) -> tuple[str, web.StreamResponse]:
        is_events = answer.content_type == "text/event-stream"
        response = stream.response
        if response is None:
            response = web.StreamResponse(
                status=answer.status, reason=answer.reason, headers=_passed_on(answer.headers)
            )
            if (length := answer.content_length) is not None:
                response.content_length = length
            await response.prepare(request)
        try:
            if stream.response is not None and (answer.status != HTTPStatus.OK or not is_events):
                # The status 200 is sent already.
                return "answered", await stream.fail(await _message(answer), answer.status)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        except aiohttp.ClientConnectionResetError:
            raise
        except aiohttp.ClientError:
            if is_events:
                stream.response = response
                # The replica may have ended in the middle of an event.
                await response.write(b"\n\n")
                return "cut", await stream.fail(_CUT, HTTPStatus.BAD_GATEWAY)
            if request.transport is not None:
                request.transport.abort()
            return "cut", response
        return "answered", response


async def _wait_for_parent(stop: asyncio.Event) -> None:
    """Set `stop` when the supervisor closes the standard input."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while await reader.read(1024):
        pass
    stop.set()


def _server_logger() -> logging.Logger:
    """Return a logger that drops all messages of aiohttp, because they quote requests."""

    def leave_out_content(record: logging.LogRecord) -> bool:
        error = record.exc_info[0] if record.exc_info else None
        record.msg, record.args = "a request failed: %s", (error.__name__ if error else "invalid",)
        record.exc_info = record.exc_text = None
        return True

    server_logger = logging.getLogger(f"{__name__}.server")
    server_logger.filters.clear()
    server_logger.addFilter(leave_out_content)
    return server_logger


def _passed_on(
    headers: CIMultiDictProxy[str],
) -> CIMultiDict[str]:
    """Return the headers without those that belong to one connection or to the router."""
    named = {name.strip().lower() for name in headers.get(hdrs.CONNECTION, "").split(",")}
    left_out = _OF_ONE_CONNECTION | named
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in left_out
    )


def _asks_for_stream(request: web.BaseRequest, body: bytes) -> bool:
    """Return whether the client expects events."""
    if request.method != hdrs.METH_POST or _STREAM.search(body) is None:
        return False
    try:
        parsed = from_json(body)
    except ValueError:
        return False
    return isinstance(parsed, dict) and parsed.get("stream") is True


def _seconds(text: str | None) -> float:
    """Return the time in HELD_HEADER in seconds; 0 if the header is absent or not valid."""
    return int(text) / 1000 if text and _DIGITS.fullmatch(text) else 0.0


async def _message(answer: aiohttp.ClientResponse) -> str:
    """Return the message in a replica's error."""
    try:
        body = await answer.content.readexactly(LONGEST_ERROR)
    except asyncio.IncompleteReadError as error:
        body = error.partial
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return "the replica refused the request"

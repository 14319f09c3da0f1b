"""Admits requests to the API: checks keys and phase, and counts the requests in progress.

It is pure ASGI for speed, because every request and every streamed chunk passes through it.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmservice_server.cache_salt import current_key
from llmservice_server.cors import Origins
from llmservice_server.errors import (
    ENGINE_FAILED_MESSAGE,
    OTHER_REPLICA,
    RETRY_AFTER_SECONDS,
    RETRY_HEADER,
    error_response,
    unexpected_error,
)
from llmservice_server.exchange import NO_ROOM, BodyRoom, Cut, Exchange, body_too_large
from llmservice_server.keys import ApiKey, ApiKeys, current_key_name
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.logs import DETAILS
from llmservice_server.metrics import ServerMetrics
from llmservice_server.queue_place import Place, current_place
from llmservice_server.request_ids import identify
from llmservice_server.routers import (
    NO_ROUTER,
    Readers,
    RouterHeaders,
    current_router_headers,
    read_router_headers,
)
from llmservice_server.routes import Route, find_route, without_slashes
from llmservice_server.settings import ServerSettings
from llmservice_server.stored_responses import STORED_HEADER, stored_response

logger = logging.getLogger(__name__)

ENGINE_FAILED = Cut("failed", ENGINE_FAILED_MESSAGE, 503)
_UNANSWERABLE = Cut("unanswerable", "a value of the request cannot be used for a stream", 400)
_NO_KEY = Cut("unauthorized", "send a valid API key in the header Authorization: Bearer KEY", 401)
_BROKEN = Cut("broken", "the answer could not be finished", 500)

_LONG_BODIES = 16
"""Number of bodies of maximum length that fit in memory together. By default, they take 256 MiB."""

_CUT_SECONDS = 0.5
"""Maximum time in seconds to send errors to the clients whose requests are cut off."""

OWN_REQUEST = "llmservice.own_request"
"""Key in the ASGI scope of a request that the server sends to itself. Such a request is admitted
before the server is ready and without an API key. It is not counted, because no client sent it."""

_CLIENT_LEFT = 499
"""Status that proxies log for a client that disconnected. It is only counted and never sent."""


class InFlight:
    """Set of the admitted requests in progress; callers can wait until it is empty."""

    def __init__(self) -> None:
        self._exchanges: set[Exchange] = set()
        self._none = asyncio.Event()
        self._none.set()
        self._seen = 0

    @property
    def count(self) -> int:
        """Number of admitted requests in progress."""
        return len(self._exchanges)

    @property
    def seen(self) -> int:
        """Number of admitted requests so far."""
        return self._seen

    def open(self) -> frozenset[object]:
        """Return the admitted requests in progress. A later call shows which of them have ended."""
        return frozenset(self._exchanges)

    @contextmanager
    def holding(self, exchange: Exchange) -> Iterator[None]:
        """Count an exchange as in progress while the context is open."""
        self._exchanges.add(exchange)
        self._seen += 1
        self._none.clear()
        try:
            yield
        finally:
            self._exchanges.discard(exchange)
            if not self._exchanges:
                self._none.set()

    async def wait_until_none(self, timeout: float) -> bool:
        """Wait until no request is in progress; return False after `timeout` seconds."""
        try:
            await asyncio.wait_for(self._none.wait(), timeout)
        except TimeoutError:
            return False
        return True

    async def wait_until_quiet(self, quiet_seconds: float) -> None:
        """Wait until no request is in progress and none has been admitted for `quiet_seconds`."""
        seen = -1
        while seen != self._seen or self._exchanges:
            seen = self._seen
            await self._none.wait()
            await asyncio.sleep(quiet_seconds)

    async def cut_all(self, cut: Cut) -> None:
        """End the requests in progress with an error, and wait briefly until it is sent."""
        for exchange in list(self._exchanges):
            exchange.end(cut)
        await self.wait_until_none(_CUT_SECONDS)


@dataclass(frozen=True)
class Admission:
    """Settings and parts of the server that decide whether a request is admitted."""

    lifecycle: Lifecycle
    metrics: ServerMetrics
    in_flight: InFlight
    settings: ServerSettings
    keys: ApiKeys | None
    """Accepted API keys; None accepts requests without a key."""
    turn_away: Callable[[int], None] = lambda sequences: None
    """Callback that counts sequences as demand when they are refused because there is no room."""
    key_answered: Callable[[str], None] = lambda name: None
    """Callback that counts an answered request by the name of its API key."""
    readers: Readers = field(default_factory=Readers)
    """Addresses from which the headers of a router are believed."""


class Gate:
    """ASGI middleware that admits requests to serving routes while the server serves."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._lifecycle = admission.lifecycle
        self._metrics = admission.metrics
        self._in_flight = admission.in_flight
        self._settings = admission.settings
        self._keys = admission.keys
        self._turn_away = admission.turn_away
        self._key_answered = admission.key_answered
        self._readers = admission.readers
        self._metrics.in_flight.set_function(lambda: admission.in_flight.count)
        self._body_room = BodyRoom(_LONG_BODIES * admission.settings.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "the listener speaks nothing else"
        started_at = time.perf_counter()
        request_id = identify(scope)
        route = find_route(scope["method"], scope["path"])
        origins: Origins | None = scope["app"].state.origins
        permission = None if origins is None else origins.permission(scope)
        is_own = OWN_REQUEST in scope
        key = None if self._keys is None or is_own else self._keys.find(scope["headers"])
        router = NO_ROUTER if is_own else read_router_headers(scope, self._readers, self._metrics)
        exchange = Exchange(
            receive,
            send if origins is None or permission else origins.shown_to(scope, send),
            route=None if route is None else route.path,
            content_type=_header(scope, b"content-type"),
            max_body_bytes=self._max_body_bytes(route),
            body_room=self._body_room,
            # The smoke test itself limits the time of the requests that it sends.
            timeout_seconds=0 if is_own else self._settings.request_timeout_seconds,
            amend=partial(self._amend, scope, request_id, route),
            engine_has_died=self._lifecycle.engine_has_died,
        )
        try:
            # A browser asks for permission without a key. Only the page's own request has the key.
            own_answer = permission or (None if is_own else self._own_answer(route, scope, key))
            if own_answer is not None:
                # A request that the gate itself answers is not counted as in flight, because it
                # must not prolong a drain.
                await own_answer(scope, exchange.receive, exchange.send)
            else:
                held = nullcontext() if is_own else self._in_flight.holding(exchange)
                place = _place_of(exchange, route)
                with held, place as entered, self._as_client(key), _with_router_headers(router):
                    await self._answer(exchange, scope, entered)
        finally:
            exchange.close()
            if not is_own:
                seconds = time.perf_counter() - started_at
                self._count(exchange, route, scope["method"], seconds, router)
                if key is not None:
                    self._key_answered(key.name)

    async def _answer(self, exchange: Exchange, scope: Scope, place: Place) -> None:
        try:
            application: ASGIApp = scope["app"].state.engine_app or self._app
            await application(scope, exchange.receive, exchange.send)
        except Exception as error:
            # Errors are expected after the exchange has ended early, so they are ignored.
            if not exchange.is_over:
                logger.exception("an answer broke")
                if exchange.is_broken_stream:
                    exchange.end(self._why_it_broke(exchange, error))
                elif exchange.status is None:
                    response = unexpected_error(error)
                    await response(scope, exchange.receive, exchange.send)
                elif not exchange.is_finished:
                    raise
        await exchange.finish()
        if exchange.status == 503 and exchange.cut is None and place.refusal is not None:
            self._metrics.rejected.labels(place.refusal).inc()

    def _own_answer(self, route: Route | None, scope: Scope, key: ApiKey | None) -> Response | None:
        """Return the gate's own response to a request that is not admitted; None admits it.

        The key is checked first, so that all requests without a valid key get the same response.
        """
        needs_key = self._keys is not None and (route is None or route.needs_key)
        if needs_key and key is None:
            response = self._refused(_NO_KEY)
            response.headers["www-authenticate"] = "Bearer"
            return response
        if route is None:
            location = without_slashes(scope["method"], scope["raw_path"])
            if location is not None:
                return Response(status_code=307, headers={"location": _with_query(location, scope)})
        if refusal := self._refusal(route, scope):
            return self._refused(refusal)
        return None

    @contextmanager
    def _as_client(self, key: ApiKey | None) -> Iterator[None]:
        """Count the tokens for the key while the context is open. Share the prefix cache only among
        requests with the same key, if the settings say so.
        """
        digest = None
        if self._keys is not None and self._settings.isolate_prefix_cache:
            # The server's own requests have no key. With a random digest, they share their prompts
            # with no other request.
            digest = key.digest if key is not None else secrets.token_bytes(32)
        name = current_key_name.set(None if key is None else key.name)
        token = current_key.set(digest)
        try:
            yield
        finally:
            current_key.reset(token)
            current_key_name.reset(name)

    def _refused(self, refusal: Cut) -> Response:
        self._metrics.rejected.labels(refusal.reason).inc()
        return error_response(refusal.message, refusal.status)

    def _refusal(self, route: Route | None, scope: Scope) -> Cut | None:
        """Return the reason to refuse the request; None admits it."""
        if route is None and not self._settings.administration_routes:
            return Cut("no_route", f"no route {scope['path'][:200]}; GET /docs lists them", 404)
        if not self._lifecycle.accepts_requests:
            return self._not_serving()
        if _announced_bytes(scope) > (limit := self._max_body_bytes(route)):
            return body_too_large(limit)
        return None

    def _max_body_bytes(self, route: Route | None) -> int:
        limit = self._settings.max_body_bytes
        if route is None or route.max_body_bytes is None:
            return limit
        return min(limit, route.max_body_bytes)

    def _why_it_broke(self, exchange: Exchange, error: Exception) -> Cut:
        if self._lifecycle.engine_has_died():
            return ENGINE_FAILED
        # If a stream has started and the application handles this type of error, Starlette raises
        # its own error instead. The original error is the cause of Starlette's error.
        cause = error.__cause__ or error
        # A ValueError or TypeError before the first event comes from a value that the client sent.
        is_its_value = exchange.is_held and isinstance(cause, ValueError | TypeError)
        return _UNANSWERABLE if is_its_value else _BROKEN

    def _not_serving(self) -> Cut:
        phase = self._lifecycle.phase
        if phase is Phase.DRAINING:
            return Cut("draining", "this replica is shutting down; send the request again", 503)
        if phase is Phase.FAILED:
            return ENGINE_FAILED
        return Cut("loading", f"the model is not ready yet (phase {phase}); try again later", 503)

    def _amend(self, scope: Scope, request_id: str, route: Route | None, start: Message) -> None:
        """Add the request's id and the headers of the current phase to a response's start."""
        headers = MutableHeaders(scope=start)
        headers["x-request-id"] = request_id
        if start["status"] == 200 and (stored := stored_response(scope)) is not None:
            headers[STORED_HEADER] = stored
        if route is not None and route.is_of_anthropic:
            headers["request-id"] = request_id
        if self._lifecycle.phase is Phase.DRAINING:
            # The client then opens a new connection for its next request and reaches another
            # replica.
            headers["connection"] = "close"
        if start["status"] == 503:
            headers.setdefault("retry-after", str(RETRY_AFTER_SECONDS))
            headers[RETRY_HEADER] = OTHER_REPLICA

    def _count(
        self,
        exchange: Exchange,
        route: Route | None,
        method: str,
        seconds: float,
        router: RouterHeaders,
    ) -> None:
        """Count and log an exchange that has ended; the log contains no prompt and no answer."""
        # All unknown paths share one label, so that a scanner cannot grow the metric.
        label = "unknown" if route is None else route.path
        status = exchange.status or 500
        if exchange.client_left:
            status = _CLIENT_LEFT
            self._metrics.aborted.labels(label).inc()
        elif exchange.cut is not None:
            self._metrics.rejected.labels(exchange.cut.reason).inc()
            if exchange.cut is NO_ROOM and not router.will_retry:
                # The body was not read, so the number of its sequences is unknown. Count one
                # sequence.
                self._turn_away(1)
        self._metrics.requests.labels(label, status).inc()
        self._metrics.duration.labels(label).observe(seconds)
        details = {"route": label, "status": status, "seconds": round(seconds, 4)}
        logger.info("%s %s %d", method, label, status, extra={DETAILS: details})


@contextmanager
def _with_router_headers(router: RouterHeaders) -> Iterator[None]:
    """Make these the router headers of the current request while the context is open."""
    token = current_router_headers.set(router)
    try:
        yield
    finally:
        current_router_headers.reset(token)


@contextmanager
def _place_of(exchange: Exchange, route: Route | None) -> Iterator[Place]:
    """Give the request a place in the engine's queue while the context is open."""
    asks_for_all = route is not None and route.asks_for_all
    place = Place(lambda: exchange.shape.inputs, asks_for_all=asks_for_all)
    token = current_place.set(place)
    try:
        yield place
    finally:
        current_place.reset(token)
        place.leave()


def _with_query(location: str, scope: Scope) -> str:
    query: bytes = scope["query_string"]
    return f"{location}?{query.decode('ascii')}" if query else location


def _announced_bytes(scope: Scope) -> int:
    """Return the content-length of the request in bytes; 0 when it is absent or not a number."""
    value = _header(scope, b"content-length")
    return int(value) if value.isdigit() else 0


def _header(scope: Scope, name: bytes) -> bytes:
    """Return the value of a header; empty when the header is absent."""
    return next((value for known, value in scope["headers"] if known == name), b"")

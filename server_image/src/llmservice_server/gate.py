"""Admission in front of the API: checks keys and phase, and counts the requests in progress.

It is pure ASGI because every request and every streamed chunk passes through it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmservice_server.errors import RETRY_AFTER_SECONDS, error_response, unexpected_error
from llmservice_server.exchange import NO_ROOM, BodyRoom, Cut, Exchange, body_too_large
from llmservice_server.keys import ApiKeys
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.logs import DETAILS
from llmservice_server.metrics import ServerMetrics
from llmservice_server.queue_place import Place, current_place
from llmservice_server.request_ids import identify
from llmservice_server.routes import serving_route
from llmservice_server.settings import ServerSettings

logger = logging.getLogger(__name__)

ENGINE_FAILED = Cut("failed", "the engine of this replica failed; send the request again", 503)
_UNANSWERABLE = Cut("unanswerable", "a value of the request cannot be used for a stream", 400)
_BROKEN = Cut("broken", "the answer could not be finished", 500)

_LONG_BODIES = 16
"""Number of bodies of maximum length that may be in memory at once: 256 MiB by default."""

_CUT_SECONDS = 0.5
"""Time in which the errors of ended requests are sent, in seconds."""

_CLIENT_LEFT = 499
"""Status that proxies log for a client that disconnected; it is never sent, but counted."""


class InFlight:
    """The admitted requests in progress, and ways to wait until there are none."""

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

    @contextmanager
    def holding(self, exchange: Exchange) -> Iterator[None]:
        """Count an exchange while it lasts."""
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
        """Return whether all requests ended before the timeout, in seconds."""
        try:
            await asyncio.wait_for(self._none.wait(), timeout)
        except TimeoutError:
            return False
        return True

    async def wait_until_quiet(self, quiet_seconds: float) -> None:
        """Return when no request is left and none has been admitted for a while."""
        seen = -1
        while seen != self._seen or self._exchanges:
            seen = self._seen
            await self._none.wait()
            await asyncio.sleep(quiet_seconds)

    async def cut_all(self, cut: Cut) -> None:
        """End the requests in progress with an error, and allow a moment to send it."""
        for exchange in list(self._exchanges):
            exchange.end(cut)
        await self.wait_until_none(_CUT_SECONDS)


@dataclass(frozen=True)
class Admission:
    """Rules of admission."""

    lifecycle: Lifecycle
    metrics: ServerMetrics
    in_flight: InFlight
    settings: ServerSettings
    keys: ApiKeys | None
    """None requires no key."""
    turn_away: Callable[[int], None] = lambda sequences: None
    """Counts sequences that were refused for want of room as demand."""


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
        self._metrics.in_flight.set_function(lambda: admission.in_flight.count)
        self._body_room = BodyRoom(_LONG_BODIES * admission.settings.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "the listener speaks nothing else"
        started_at = time.perf_counter()
        request_id = identify(scope)
        route = serving_route(scope["path"])
        exchange = Exchange(
            receive,
            send,
            route=route,
            content_type=_header(scope, b"content-type"),
            max_body_bytes=self._settings.max_body_bytes,
            body_room=self._body_room,
            timeout_seconds=self._settings.request_timeout_seconds,
            amend=partial(self._amend, request_id),
            engine_has_died=self._lifecycle.engine_has_died,
        )
        try:
            if refusal := self._refusal(route, scope):
                # Not in flight: a refused request must not prolong a drain.
                await self._refuse(exchange, refusal, scope)
            else:
                with self._in_flight.holding(exchange), _place_of(exchange):
                    await self._answer(exchange, scope)
        finally:
            exchange.close()
            self._count(exchange, route, scope["method"], time.perf_counter() - started_at)

    async def _refuse(self, exchange: Exchange, refusal: Cut, scope: Scope) -> None:
        self._metrics.rejected.labels(refusal.reason).inc()
        response = error_response(refusal.message, refusal.status)
        if refusal.status == 401:
            response.headers["www-authenticate"] = "Bearer"
        await response(scope, exchange.receive, exchange.send)

    async def _answer(self, exchange: Exchange, scope: Scope) -> None:
        try:
            application: ASGIApp = scope["app"].state.engine_app or self._app
            await application(scope, exchange.receive, exchange.send)
        except Exception as error:
            # The application's errors about a client that has disconnected do not matter.
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
        if (
            exchange.status == 503
            and exchange.cut is None
            and not self._lifecycle.engine_has_died()
        ):
            # The only case in which a live engine refuses in this way.
            self._metrics.rejected.labels("queue_full").inc()

    def _refusal(self, route: str | None, scope: Scope) -> Cut | None:
        """Return the reason to refuse the request. The key is checked first, so that all requests
        without one get the same answer.
        """
        if self._keys is not None and not self._keys.allow(scope["headers"]):
            return Cut(
                "unauthorized", "send a valid API key in the header Authorization: Bearer KEY", 401
            )
        if route is None and not self._settings.administration_routes:
            return Cut("no_route", f"no route {scope['path'][:200]}; GET /docs lists them", 404)
        if not self._lifecycle.accepts_requests:
            return self._not_serving()
        if _announced_bytes(scope) > self._settings.max_body_bytes:
            return body_too_large(self._settings.max_body_bytes)
        return None

    def _why_it_broke(self, exchange: Exchange, error: Exception) -> Cut:
        if self._lifecycle.engine_has_died():
            return ENGINE_FAILED
        # Starlette hides an error that has a handler behind its own once a stream is announced.
        cause = error.__cause__ or error
        # An error before the first event is due to a value that the client sent.
        is_its_value = exchange.is_held and isinstance(cause, ValueError | TypeError)
        return _UNANSWERABLE if is_its_value else _BROKEN

    def _not_serving(self) -> Cut:
        phase = self._lifecycle.phase
        if phase is Phase.DRAINING:
            return Cut("draining", "this replica is shutting down; send the request again", 503)
        if phase is Phase.FAILED:
            return ENGINE_FAILED
        return Cut("loading", f"the model is not ready yet (phase {phase}); try again later", 503)

    def _amend(self, request_id: str, start: Message) -> None:
        """Add the request's id, and the headers of the current phase, to the start of a
        response.
        """
        headers = MutableHeaders(scope=start)
        headers["x-request-id"] = request_id
        if self._lifecycle.phase is Phase.DRAINING:
            # The client's next request then opens a connection, to another replica.
            headers["connection"] = "close"
        if start["status"] == 503:
            headers.setdefault("retry-after", str(RETRY_AFTER_SECONDS))

    def _count(self, exchange: Exchange, route: str | None, method: str, seconds: float) -> None:
        """Count and log an exchange that has ended, without prompt or answer."""
        # One label for all unknown paths: a scanner must not grow the metric.
        label = route or "unknown"
        status = exchange.status or 500
        if exchange.client_left:
            status = _CLIENT_LEFT
            self._metrics.aborted.labels(label).inc()
        elif exchange.cut is not None:
            self._metrics.rejected.labels(exchange.cut.reason).inc()
            if exchange.cut is NO_ROOM:
                # Its texts are not known, because its body was not read.
                self._turn_away(1)
        self._metrics.requests.labels(label, status).inc()
        self._metrics.duration.labels(label).observe(seconds)
        details = {"route": label, "status": status, "seconds": round(seconds, 4)}
        logger.info("%s %s %d", method, label, status, extra={DETAILS: details})


@contextmanager
def _place_of(exchange: Exchange) -> Iterator[None]:
    """Give the request a place in the engine's queue while it lasts."""
    place = Place(lambda: exchange.shape.inputs)
    token = current_place.set(place)
    try:
        yield
    finally:
        current_place.reset(token)
        place.leave()


def _announced_bytes(scope: Scope) -> int:
    """Return the announced length of the body; 0 when there is none."""
    value = _header(scope, b"content-length")
    return int(value) if value.isdigit() else 0


def _header(scope: Scope, name: bytes) -> bytes:
    """Return the value of a header; empty when there is none."""
    return next((value for known, value in scope["headers"] if known == name), b"")

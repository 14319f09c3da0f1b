"""Admission in front of the API: what may pass now, what is in flight, and how it is counted.

Pure ASGI on purpose: it is passed by every request and every streamed chunk.
"""

import asyncio
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmservice_server.errors import RETRY_AFTER_SECONDS, error_response
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.metrics import ServerMetrics
from llmservice_server.routes import serving_route


class InFlight:
    """The number of requests being answered, and a way to wait until there is none."""

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self.count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if self.count == 0:
            self._none.set()

    async def wait_until_none(self, timeout: float) -> bool:
        """Return whether no request was left before the timeout, in seconds."""
        try:
            await asyncio.wait_for(self._none.wait(), timeout)
        except TimeoutError:
            return False
        return True


class Gate:
    """ASGI middleware that admits serving requests while the server serves."""

    def __init__(
        self, app: ASGIApp, lifecycle: Lifecycle, metrics: ServerMetrics, in_flight: InFlight
    ) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = serving_route(scope["path"])
        status = 500
        started_at = time.perf_counter()

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._amend(message)
            await send(message)

        try:
            with self._in_flight:
                self._metrics.in_flight.set(self._in_flight.count)
                await self._handler(route, scope["path"])(scope, receive, send_counted)
        finally:
            self._metrics.in_flight.set(self._in_flight.count)
            # One label for all unknown paths: a scanner must not grow the metric.
            label = route or "unknown"
            self._metrics.requests.labels(label, status).inc()
            self._metrics.duration.labels(label).observe(time.perf_counter() - started_at)

    def _handler(self, route: str | None, path: str) -> ASGIApp:
        """Return who answers: the application, or a refusal."""
        if route is None:
            return error_response(f"no route {path}; GET /docs lists them", 404)
        if not self._lifecycle.accepts_requests:
            return error_response(self._refusal(), 503)
        return self._app

    def _refusal(self) -> str:
        phase = self._lifecycle.phase
        if phase is Phase.DRAINING:
            return "this replica is shutting down; send the request again"
        if phase is Phase.FAILED:
            return "the engine of this replica failed; send the request again"
        return f"the model is not ready yet (phase {phase}); try again later"

    def _amend(self, start: Message) -> None:
        """Add the headers that the phase asks for to the start of a response."""
        if self._lifecycle.phase is Phase.DRAINING:
            # The client's next request then opens a connection, to another replica.
            MutableHeaders(scope=start)["connection"] = "close"
        if start["status"] == 503:
            MutableHeaders(scope=start).setdefault("retry-after", str(RETRY_AFTER_SECONDS))

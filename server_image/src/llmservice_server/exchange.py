"""Limits the size and time of one request, and ends its response correctly.

To the application, an exceeded limit looks like a client that disconnects. vLLM's routes that use
the engine listen for a disconnect, and then abort the request in the engine. The application's
further output is dropped, and the client gets an error instead.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from starlette.types import Message, Receive, Send

from llmservice_server.body_shape import BadShape, Shape, check_shape
from llmservice_server.errors import ENGINE_FAILED_MESSAGE, error_response
from llmservice_server.stream_errors import BARE_ERROR, NAMED_ERROR, StreamError, error_event
from llmservice_server.streaming import STREAM_END

T = TypeVar("T")

_LONG_BODY_BYTES = 16 * 1024
"""Length in bytes above which bodies are parsed one at a time. Parsing a body of this length takes
a millisecond."""

_KEPT_FOR_SHORT_BODIES = 1 / 16
"""Share of the room that long bodies cannot take. Otherwise, a few clients that never finish their
long bodies would turn away all other clients."""

_BODY_SECONDS = 60.0
"""Maximum time in seconds for the body of a request to arrive. It is an estimate that allows a
megabyte over a slow line."""

_LEFT: Message = {"type": "http.disconnect"}
_ERROR_EVENTS = (BARE_ERROR.encode(), NAMED_ERROR.encode())
_END_EVENT = STREAM_END.encode()


@dataclass(frozen=True)
class Cut:
    """Reason why the server ended an exchange."""

    reason: str
    """Name of the reason in metrics."""
    message: str
    status: int


NO_ROOM = Cut(
    "bodies_full", "too many long requests at once on this replica; send the request again", 503
)


class BodyRoom:
    """Budget in bytes for all request bodies in memory. Long bodies are parsed one at a time."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._kept = int(size * _KEPT_FOR_SHORT_BODIES)
        self._parsing = asyncio.Lock()

    def take(self, size: int, *, is_long: bool) -> bool:
        """Reserve `size` bytes of a body; return False when there is no room for them."""
        if size > self._free - (self._kept if is_long else 0):
            return False
        self._free -= size
        return True

    def give_back(self, size: int) -> None:
        """Release `size` reserved bytes."""
        self._free += size

    async def turn(self) -> None:
        """Wait until a long body may be parsed. The caller must parse it before any other await.

        The next long body may be parsed after a pause that is as long as the parsing took.
        Otherwise, many long bodies that arrive together would be parsed one after the other while
        no other client is served.
        """
        await self._parsing.acquire()
        loop = asyncio.get_running_loop()
        began = loop.time()
        loop.call_soon(lambda: loop.call_later(loop.time() - began, self._parsing.release))


class Exchange:
    """One request and its response. The application calls its `receive` and `send`."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        route: str | None,
        content_type: bytes,
        max_body_bytes: int,
        body_room: BodyRoom,
        timeout_seconds: float,
        amend: Callable[[Message], None],
        engine_has_died: Callable[[], bool],
    ) -> None:
        """Begin the exchange.

        A `timeout_seconds` of 0 sets no limit. `amend` may change the start of a response.
        """
        self._receive = receive
        self._send = send
        self._route = route
        self._content_type = content_type
        self._max_body_bytes = max_body_bytes
        self._body_room = body_room
        self._timeout_seconds = timeout_seconds
        self._amend = amend
        self._engine_has_died = engine_has_died
        now = asyncio.get_running_loop().time()
        self._deadline = now + timeout_seconds if timeout_seconds else None
        self._body_deadline = min(now + _BODY_SECONDS, self._deadline or now + _BODY_SECONDS)
        self._body_bytes = 0
        self._body_parts: list[bytes] = []
        self._body_is_here = False
        self.shape = Shape()
        """Shape of the body, once it has arrived."""
        self._waiting: asyncio.Timeout | None = None
        self._held_start: Message | None = None
        self._is_stream = False
        self._events = 0
        self._is_broken = False
        self._is_replaced = False
        self.status: int | None = None
        """Status of the response that the client received."""
        self.is_finished = False
        self.client_left = False
        """Whether the client disconnected before its response ended."""
        self.cut: Cut | None = None

    @property
    def is_over(self) -> bool:
        """Whether further output of the application is dropped."""
        return self.client_left or self.cut is not None

    @property
    def is_held(self) -> bool:
        """Whether the application has started a stream of which nothing has been sent yet."""
        return self._held_start is not None

    @property
    def is_broken_stream(self) -> bool:
        """Whether the application has begun a stream and not finished it."""
        return self._is_stream and not self.is_finished

    async def receive(self) -> Message:
        """Return the next message of the client, or a disconnect when a limit is exceeded.

        The whole body is one message, because its shape is checked before the application gets it.
        """
        while True:
            message = await self._next_message()
            if message["type"] == "http.disconnect":
                return message
            if self._body_is_here:
                if self._body_bytes > _LONG_BODY_BYTES:
                    await self._until(self._deadline, self._body_room.turn())
                return _LEFT if self.cut is not None else self._checked_body(message)

    async def _next_message(self) -> Message:
        if self.cut is not None:
            return _LEFT
        deadline = self._deadline if self._body_is_here else self._body_deadline
        message = await self._until(deadline, self._receive())
        if message is None:
            return _LEFT
        if message["type"] == "http.disconnect":
            self.client_left = not self.is_finished
            return message
        part = message.get("body", b"")
        is_long = self._body_bytes + len(part) > _LONG_BODY_BYTES
        if not self._body_room.take(len(part), is_long=is_long):
            self.cut = NO_ROOM
            return _LEFT
        self._body_bytes += len(part)
        if self._body_bytes > self._max_body_bytes:
            self.cut = body_too_large(self._max_body_bytes)
            return _LEFT
        self._body_parts.append(part)
        self._body_is_here = not message.get("more_body", False)
        return message

    async def _until(self, deadline: float | None, awaited: Awaitable[T]) -> T | None:
        """Return the result of `awaited`.

        At the deadline, or when the exchange is cut, end the exchange and return None.
        """
        waiting = asyncio.timeout_at(deadline)
        try:
            async with waiting:
                self._waiting = waiting
                return await awaited
        except TimeoutError:
            self.cut = self.cut or self._too_late()
            return None
        finally:
            # A cancelled call may end after the next call has set its own timeout.
            if self._waiting is waiting:
                self._waiting = None

    def _checked_body(self, message: Message) -> Message:
        body = b"".join(self._body_parts)
        self._body_parts.clear()
        try:
            self.shape = check_shape(self._route, self._content_type, body)
        except BadShape as error:
            self.cut = Cut("body_shape", str(error), 400)
            return _LEFT
        return {**message, "body": body}

    def close(self) -> None:
        """Release the memory that was reserved for the body."""
        self._body_room.give_back(self._body_bytes)

    def end(self, cut: Cut) -> None:
        """End the exchange now, unless it has already ended."""
        if self.is_over or self.is_finished:
            return
        self.cut = cut
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time())

    async def send(self, message: Message) -> None:
        """Send a part of the response to the client. This runs for every streamed token."""
        if self.client_left or self.cut is not None or self._is_replaced:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._is_stream = _is_event_stream(message)
            if self._is_stream:
                # The start is held until the first event, because an error in that event can still
                # set the status.
                self._held_start = message
                return
            self._amend(message)
        elif self._is_stream:
            if self._held_start is not None and await self._begins_with_error(message):
                return
            if self._is_broken or message.get("body", b"").startswith(_ERROR_EVENTS):
                self._end_honestly(message)
            self._events += 1
            self.is_finished = not message.get("more_body", False)
        else:
            self.is_finished = not message.get("more_body", False)
        await self._send(message)

    async def finish(self) -> None:
        """Send the error to the client if the server ended the exchange.

        Raises ConnectionAbortedError when the response has begun and is not a stream.
        """
        if self.cut is None or self.client_left or self.is_finished:
            return
        if self.status is None or self._held_start is not None:
            self.status = self.cut.status
            await self._answer(StreamError(self.cut.message, self.cut.status))
        elif self._is_stream:
            error = self._error_event(StreamError(self.cut.message, self.cut.status))
            await self._send({"type": "http.response.body", "body": error, "more_body": False})
            self.is_finished = True
        else:
            raise ConnectionAbortedError(self.cut.message)

    async def _begins_with_error(self, message: Message) -> bool:
        """Start the stream and return False, unless its first event is an error.

        In that case, answer with the error and return True.
        """
        start, self._held_start = self._held_start, None
        assert start is not None
        error = self._error_in(message)
        if error is None:
            self._amend(start)
            await self._send(start)
            return False
        self._is_replaced = True
        self.status = error.status
        await self._answer(error)
        return True

    def _end_honestly(self, message: Message) -> None:
        """Prevent a stream with an error from ending like a complete stream."""
        if self._is_broken and message.get("body") == _END_EVENT:
            message["body"] = b""
        elif (error := self._error_in(message)) is not None:
            self._is_broken = True
            message["body"] = self._error_event(error)

    def _error_event(self, error: StreamError) -> bytes:
        return error_event(self._route, error, self._events).encode()

    def _error_in(self, message: Message) -> StreamError | None:
        """Return the error that an event reports; None if it reports none or cannot be read."""
        body: bytes = message.get("body", b"")
        if not body.startswith(_ERROR_EVENTS):
            return None
        try:
            error = json.loads(body.partition(b"data: ")[2])["error"]
            # An error without a code is unexpected, and its text is not for the client.
            text = str(error["message"]) if "code" in error else ""
            status = int(error.get("code", 500))
            parameter = error.get("param")
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        if status >= 500 and self._engine_has_died():
            return StreamError(ENGINE_FAILED_MESSAGE, 503)
        text = text or "the engine could not finish this request"
        return StreamError(text, status, parameter if isinstance(parameter, str) else None)

    async def _answer(self, error: StreamError) -> None:
        response = error_response(error.message, error.status, error.parameter)

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._amend(message)
            await self._send(message)

        await response({"type": "http", "method": "POST"}, _never, send)
        self.is_finished = True

    def _too_late(self) -> Cut:
        if not self._body_is_here:
            return Cut("slow_body", "the body of the request did not arrive in time", 408)
        return Cut(
            "timeout",
            f"the request took longer than {self._timeout_seconds:g} seconds; ask for fewer "
            "tokens, or raise spec.serving.requestTimeoutSeconds",
            504,
        )


def body_too_large(limit: int) -> Cut:
    """Return the cut for a body that is longer than `limit` bytes."""
    return Cut("body_too_large", f"the body is longer than {limit} bytes; send a shorter one", 413)


def _is_event_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start.get("headers", ())
    )


async def _never() -> Message:
    raise AssertionError("an error response reads nothing")

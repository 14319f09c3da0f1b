"""Enforces limits on a client's connection that the HTTP library does not enforce.

The gate limits requests, so its limits begin when the head of a request is complete. The limits
here cover connections without a request, the framing around a body, and clients that do not read
their responses.
"""

import fcntl
import sys
import termios
import time
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from llmservice_server.errors import error_response
from llmservice_server.request_ids import HEADER, new_request_id

MESSAGE_SECONDS = 90.0
"""Maximum time for a request to arrive completely, in seconds.

The gate refuses a body that takes longer than 60 seconds. This limit also covers requests that
never reach the gate, and data that a client keeps sending after a refusal.
"""

STUCK_SECONDS = 60.0
"""Maximum time in seconds that a client may read nothing while the unsent part of the response
exceeds the buffers."""

KEEP_ALIVE_SECONDS = 120.0
"""Maximum time of a connection without a request, in seconds.

It is longer than the idle timeout of usual clients: nginx and AWS's load balancers use 60 seconds,
Go uses 90. So the client closes the connection first. If the server closed it first, a request that
the client sends before it notices the close would be lost.
"""

_FRAMING_BYTES = 64 * 1024
"""Maximum size in bytes of a request without its body: the request line, headers, chunk headers and
trailers."""

_FRAMING_PER_BODY_BYTE = 8
"""Allowed number of framing bytes per byte of the body. A one-byte chunk has five framing bytes."""

_HEADERS = 256
"""Maximum number of headers of a request. It is an estimate: browsers and proxies send twenty."""

_PIPELINED = 32
"""Maximum number of requests that wait on one connection for the response to an earlier request."""


class _Excess(Exception):
    """Error of a request that exceeds a limit."""


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's connection with limits of size and time."""

    _framing = 0
    _head_is_here = False
    _receiving_since: float | None = None
    """Time at which the arriving request began; None between requests."""
    _unsent_bytes = 0
    """Number of unsent bytes at the last check."""
    _unread_since: float | None = None
    """Time at which a client that reads slowly last made progress; None for any other client."""
    _idle_since: float | None = None
    """Time at which the connection became idle; None while there is a request or a response."""

    @property
    def unsent_bytes(self) -> int:
        """Number of response bytes that the client has not received yet.

        This includes bytes in the kernel's buffers. The kernel accepts more data only in bursts of
        megabytes, even while a slow client reads steadily.
        """
        try:
            descriptor = self.transport.get_extra_info("socket").fileno()
            of_kernel = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):
            # The socket is already closed, or does not support this call.
            of_kernel = b""
        return self.transport.get_write_buffer_size() + int.from_bytes(of_kernel, sys.byteorder)

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]
        """Start the timer of a connection without a request."""
        super().connection_made(transport)
        self._idle_since = time.monotonic()

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes, and count those outside a body towards the framing limit."""
        self._framing += len(data)
        super().data_received(data)
        if self._framing > _FRAMING_BYTES and not self.transport.is_closing():
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Reset the limits for the next request of the connection."""
        super().on_message_begin()
        self._framing = 0
        self._head_is_here = False
        self._idle_since = None
        if self._receiving_since is None:
            self._receiving_since = time.monotonic()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header. Trailers are dropped, even if a proxy sends them."""
        if not self._head_is_here:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request if no limit is exceeded."""
        self._head_is_here = True
        if len(self.headers) > _HEADERS or len(self.pipeline) >= _PIPELINED:
            self._framing = _FRAMING_BYTES + 1
            raise _Excess
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            _end_with_the_connection(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Subtract a part of the body, and the framing that it allows, from the framing bytes."""
        self._framing = max(0, self._framing - (1 + _FRAMING_PER_BODY_BYTE) * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Record that the request has arrived completely."""
        self._receiving_since = None
        super().on_message_complete()

    def resume_writing(self) -> None:
        """Record that the client has read most of the data that was sent to it."""
        super().resume_writing()
        self._unread_since = None

    def send_400_response(self, msg: str) -> None:
        """Refuse invalid data with the usual error envelope, and close the connection.

        A client that still waits for an earlier response would mistake the refusal for that
        response. The connection of such a client is closed without a refusal.
        """
        cycle = self.cycle
        if self._is_answering and (self.pipeline or cycle.response_started or not cycle.more_body):
            self.transport.abort()
            return
        response = _refusal(self._framing > _FRAMING_BYTES)
        head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        self.transport.write(
            STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body)
        )
        self.transport.close()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def end_if_overdue(self, now: float, idle_seconds: float) -> None:
        """Close the connection if the client sends its request or reads its response too slowly.

        A connection without a request for longer than `idle_seconds` is closed too. uvicorn's own
        timer is not enough, because any byte from the client stops it, even a byte that begins no
        request.
        """
        if self.flow.read_paused:
            # The client cannot send more until its earlier data is processed, so this time is not
            # counted.
            self._receiving_since = None if self._receiving_since is None else now
        unsent = self.unsent_bytes
        if not (self.flow.write_paused or self.transport.is_closing()):
            self._unread_since = None
        elif self._unread_since is None or unsent < self._unsent_bytes:
            self._unread_since = now
        self._unsent_bytes = unsent
        if self._is_answering or self._receiving_since is not None:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        if _is_over(self._receiving_since, MESSAGE_SECONDS, now) or _is_over(
            self._unread_since, STUCK_SECONDS, now
        ):
            self.transport.abort()
        elif _is_over(self._idle_since, idle_seconds, now):
            self.transport.close()


def _end_with_the_connection(cycle: RequestResponseCycle) -> None:
    """Mark the end of a response of unknown length by closing the connection.

    An HTTP/1.0 client does not support chunked encoding, which uvicorn uses for every client.
    uvicorn closes the connection of an HTTP/1.0 client after the response anyway.
    """
    send, is_of_unknown_length = cycle.send, False

    async def send_without_chunks(message: Any) -> None:
        nonlocal is_of_unknown_length
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message["headers"]}
            is_of_unknown_length = b"content-length" not in names
            cycle.chunked_encoding = False if is_of_unknown_length else None
        elif is_of_unknown_length:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.send = send_without_chunks  # type: ignore[method-assign]


def _is_over(since: float | None, seconds: float, now: float) -> bool:
    return since is not None and now - since > seconds


def _refusal(is_too_large: bool) -> Response:
    if is_too_large:
        text = "the request's head or the framing of its body is too large; send less"
        response = error_response(text, 431)
    else:
        response = error_response("this is not a valid HTTP/1.1 request", 400)
    response.headers["connection"] = "close"
    response.headers[HEADER.decode()] = new_request_id()
    return response

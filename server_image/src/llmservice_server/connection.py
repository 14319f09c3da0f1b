"""One client's connection, held to limits that the HTTP library does not set.

The gate limits requests, so its limits begin where a request's head has ended. What never becomes
a request, what surrounds a body, and who does not read the answers, is limited here.
"""

import fcntl
import sys
import termios
import time

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from llmservice_server.errors import error_response
from llmservice_server.request_ids import HEADER, new_request_id

MESSAGE_SECONDS = 90.0
"""How long a request may take to arrive whole.

The gate refuses a body that takes longer than 60 seconds. This ends what the gate never sees, and
what a client goes on sending after it was refused.
"""

STUCK_SECONDS = 60.0
"""How long a client may read nothing of an answer, when it has more of it than buffers hold."""

KEEP_ALIVE_SECONDS = 120.0
"""How long a connection may be without a request.

Longer than usual clients keep theirs (nginx and AWS's load balancers 60 seconds, Go 90): who closes
first loses no request, while a client may send one just before it learns that we have closed.
"""

_FRAMING_BYTES = 64 * 1024
"""Most bytes of a request besides its body: request line, headers, marks of chunks, trailers."""

_FRAMING_PER_BODY_BYTE = 8
"""Marks of chunks allowed for a byte of the body: a chunk of one byte has five."""

_HEADERS = 256
"""Most headers of a request. A judgement: browsers and proxies send twenty."""

_PIPELINED = 32
"""Most requests that wait on one connection until the one before them is answered."""


class _Excess(Exception):
    """A request has more of something than is allowed."""


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's connection with limits of size and time."""

    _framing = 0
    _head_is_here = False
    _receiving_since: float | None = None
    """When the request that is arriving began; None between requests."""
    _unsent_bytes = 0
    """How many there were at the last look."""
    _unread_since: float | None = None
    """Since when the client has read nothing; None while nothing waits for it to read."""
    _idle_since: float | None = None
    """Since when there is no request and no answer; None while there is one."""

    @property
    def unsent_bytes(self) -> int:
        """How much of its answers the client has not got yet.

        What the kernel holds of it counts: it takes more from us only now and then, megabytes at
        a time, while a slow client reads all along.
        """
        try:
            descriptor = self.transport.get_extra_info("socket").fileno()
            of_kernel = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):
            # The socket is closed already, or none that could tell.
            of_kernel = b""
        return self.transport.get_write_buffer_size() + int.from_bytes(of_kernel, sys.byteorder)

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]
        """Begin: who connects has to say something."""
        super().connection_made(transport)
        self._receiving_since = time.monotonic()

    def data_received(self, data: bytes) -> None:
        """Parse what came; what is no body counts against the limit."""
        self._framing += len(data)
        super().data_received(data)
        if self._framing > _FRAMING_BYTES and not self.transport.is_closing():
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Start over with the next request of the connection."""
        super().on_message_begin()
        self._framing = 0
        self._head_is_here = False
        self._idle_since = None
        if self._receiving_since is None:
            self._receiving_since = time.monotonic()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; what follows the body is none, whoever forwards it."""
        if not self._head_is_here:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, if there are not too many of anything."""
        self._head_is_here = True
        if len(self.headers) > _HEADERS or len(self.pipeline) >= _PIPELINED:
            self._framing = _FRAMING_BYTES + 1
            raise _Excess
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; it was not framing after all."""
        self._framing = max(0, self._framing - (1 + _FRAMING_PER_BODY_BYTE) * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._receiving_since = None
        super().on_message_complete()

    def resume_writing(self) -> None:
        """Notice that the client has read most of what it was sent."""
        super().resume_writing()
        self._unread_since = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, in the envelope of all errors, and close the connection.

        Where the client waits for another answer first, it would take this one for that.
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
        """Drop the client if it takes too long to send its request or to read its answer.

        A connection without a request for longer than `idle_seconds` is closed. uvicorn's timer for
        that is stopped by any byte of the client, even by one that begins no request.
        """
        if self.flow.read_paused:
            # It may not go on: we have not dealt yet with what it sent.
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


def _is_over(since: float | None, seconds: float, now: float) -> bool:
    return since is not None and now - since > seconds


def _refusal(is_too_large: bool) -> Response:
    if is_too_large:
        text = "the request's head, or what surrounds its body, is too large; send less"
        response = error_response(text, 431)
    else:
        response = error_response("this is no valid HTTP/1.1 request", 400)
    response.headers["connection"] = "close"
    response.headers[HEADER.decode()] = new_request_id()
    return response

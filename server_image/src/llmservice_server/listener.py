"""Runs HTTP listeners without signal handlers. A forked engine closes its copies of the sockets."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from llmservice_server.connection import KEEP_ALIVE_SECONDS, LimitedConnection

_BACKLOG = 2048
_CUT_AFTER_SECONDS = 1
"""Maximum time in seconds for responses to end after a listener stops. The caller has already
waited for these responses."""

_TICKS_BETWEEN_LOOKS = 10
_UNSENT_CHECK_SECONDS = 0.1

_LAST_IDLE_SECONDS = 5.0
"""Maximum idle time of a connection in seconds while its listener is about to stop.

A client that sends another request within this time still gets a response. Its headers announce
that the connection closes.
"""


class PortUnavailable(Exception):
    """A port cannot be opened; the text names the port and the cause."""


def bind(port: int) -> socket.socket:
    """Return a listening socket for IPv4 and, where available, IPv6.

    Raises PortUnavailable.
    """
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
        )
    except (OSError, ValueError):
        pass  # IPv6 is missing, or the port is taken. If it is taken, IPv4 fails as well.
    try:
        return socket.create_server(("", port), backlog=_BACKLOG)
    except OSError as error:
        raise PortUnavailable(
            f"cannot listen on port {port}: {error.strerror}; choose another one"
        ) from error


class Listener(uvicorn.Server):
    """An HTTP server that runs in an event loop."""

    def __init__(self, app: ASGIApp, listening: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            http=LimitedConnection,
            lifespan="off",
            # With this value, an upgrade to a websocket is an ordinary request, and the gate
            # refuses it.
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            # The server does not use the address that a client claims to have.
            proxy_headers=False,
            timeout_keep_alive=int(KEEP_ALIVE_SECONDS),
            timeout_graceful_shutdown=_CUT_AFTER_SECONDS,
        )
        super().__init__(config)
        self._listening = listening
        self._idle_seconds = KEEP_ALIVE_SECONDS
        self._serving: asyncio.Task[None] | None = None
        os.register_at_fork(after_in_child=self._close_in_child)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals, because one place handles them for all listeners."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Close idle and stuck connections in every tenth call, which is once a second."""
        if counter % _TICKS_BETWEEN_LOOKS == 0:
            now = time.monotonic()
            for connection in self._connections():
                connection.end_if_overdue(now, self._idle_seconds)
        return await super().on_tick(counter)

    def let_idle_go(self) -> None:
        """Shorten the idle time of connections, so that clients soon connect to another replica."""
        self._idle_seconds = _LAST_IDLE_SECONDS

    async def wait_until_sent(self) -> None:
        """Wait until every client has received its responses.

        A client that does not read is disconnected, so it does not prolong the wait.
        """
        while any(  # noqa: ASYNC110 - the kernel does not report when data has arrived
            connection.unsent_bytes for connection in self._connections()
        ):
            await asyncio.sleep(_UNSENT_CHECK_SECONDS)

    def _connections(self) -> list[LimitedConnection]:
        return [
            connection
            for connection in self.server_state.connections
            if isinstance(connection, LimitedConnection)
        ]

    def start(self) -> None:
        """Start serving, in the background."""
        self._serving = asyncio.ensure_future(self.serve_until_stopped())

    async def serve_until_stopped(self) -> None:
        """Serve in the current event loop."""
        await self.serve(sockets=[self._listening])

    async def stop(self) -> None:
        """Stop accepting connections, and cut responses that do not end within a second."""
        self.should_exit = True
        if self._serving is not None:
            await self._serving

    def _close_in_child(self) -> None:
        """Close the server's sockets in a forked engine process.

        Otherwise, that process keeps the port open after the server exits, and connections that the
        server closes stay half open. The wake-up descriptor of signals is also shared, so a SIGTERM
        to the child would reach the server.
        """
        signal.set_wakeup_fd(-1)
        descriptors = [self._listening.fileno()]
        for connection in self.server_state.connections:
            transport = getattr(connection, "transport", None)
            if transport is not None:
                descriptors.append(transport.get_extra_info("socket").fileno())
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)

"""HTTP listeners that leave signals to the server and never leak into the engine process."""

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
"""How long responses may still end once a listener stops; whoever stops it has waited before."""

_TICKS_BETWEEN_LOOKS = 10
_UNSENT_CHECK_SECONDS = 0.1

_LAST_IDLE_SECONDS = 5.0
"""How long a connection may be without a request when this listener will stop.

A client that asks again at once is still answered, which tells it to close the connection.
"""


class PortUnavailable(Exception):
    """A port cannot be listened on; the text says which and why."""


def bind(port: int) -> socket.socket:
    """Return a listening socket for IPv4 and, where there is one, IPv6."""
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
        )
    except (OSError, ValueError):
        pass  # There is no IPv6 here, or the port is taken: then IPv4 fails as well.
    try:
        return socket.create_server(("", port), backlog=_BACKLOG)
    except OSError as error:
        raise PortUnavailable(
            f"cannot listen on port {port}: {error.strerror}; choose another one"
        ) from error


class Listener(uvicorn.Server):
    """One HTTP server in our event loop."""

    def __init__(self, app: ASGIApp, listening: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            http=LimitedConnection,
            lifespan="off",
            # An upgrade to a websocket is then a request like any other, and refused as one.
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            # Nothing here depends on who a client says it is.
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
        """Capture none: what a signal means is decided in one place for all listeners."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Drop the clients that hold a connection for nothing; called ten times a second."""
        if counter % _TICKS_BETWEEN_LOOKS == 0:
            now = time.monotonic()
            for connection in self._connections():
                connection.end_if_overdue(now, self._idle_seconds)
        return await super().on_tick(counter)

    def let_idle_go(self) -> None:
        """Close connections without a request soon: their clients then turn to another replica."""
        self._idle_seconds = _LAST_IDLE_SECONDS

    async def wait_until_sent(self) -> None:
        """Return when every client has got what it was answered, or was dropped for not reading."""
        while any(  # noqa: ASYNC110 - the kernel tells nobody when a client has got something
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
        """Serve from now on, in the background."""
        self._serving = asyncio.ensure_future(self.serve(sockets=[self._listening]))

    async def stop(self) -> None:
        """Stop accepting, and cut what has not ended within a second."""
        self.should_exit = True
        if self._serving is not None:
            await self._serving

    def _close_in_child(self) -> None:
        """Let go of our sockets in a forked engine process.

        Otherwise it keeps the port open after us, and connections that we close stay half open.
        The wake-up descriptor of signals is shared, too: a SIGTERM to the child would reach us.
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

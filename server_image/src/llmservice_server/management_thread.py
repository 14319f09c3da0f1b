"""Runs the management port on its own thread and event loop.

The event loop of the API may be busy with one request for seconds. If the probes did not answer in
that time, the kubelet would restart the server.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

from llmservice_server.lifecycle import Lifecycle
from llmservice_server.listener import Listener

T = TypeVar("T")

_BEAT_SECONDS = 0.5
_STOP_SECONDS = 3.0
"""Maximum time in seconds to stop the listener. After this time, the process exits anyway."""


class ManagementThread:
    """Runs a listener in a thread until it is stopped."""

    def __init__(self, make_listener: Callable[[], Listener]) -> None:
        self._make_listener = make_listener
        self._listener: Listener | None = None
        self._is_made = threading.Event()
        self._thread = threading.Thread(target=self._run, name="management", daemon=True)

    def start(self) -> None:
        """Start the thread, and return when its listener exists."""
        self._thread.start()
        self._is_made.wait()

    async def stop(self) -> None:
        """Stop the listener, and wait for its thread."""
        if self._listener is not None:
            self._listener.should_exit = True
            await asyncio.to_thread(self._thread.join, _STOP_SECONDS)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        try:
            self._listener = self._make_listener()
        finally:
            self._is_made.set()
        await self._listener.serve_until_stopped()


async def beat(lifecycle: Lifecycle) -> None:
    """Record heartbeats of the API's event loop until cancelled."""
    while True:
        lifecycle.beat()
        await asyncio.sleep(_BEAT_SECONDS)


async def run_in(loop: asyncio.AbstractEventLoop, read: Callable[[], T], seconds: float) -> T:
    """Return the result of a function that runs in another event loop.

    Raises TimeoutError when that loop does not answer within `seconds`.
    """

    async def call() -> T:
        return read()

    called: Awaitable[T] = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), loop))
    return await asyncio.wait_for(called, seconds)

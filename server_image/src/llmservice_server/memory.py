"""Returns free memory of the allocator to the system.

Otherwise, the allocator would keep the memory of long requests.
"""

import asyncio
import ctypes
from collections.abc import Callable

from llmservice_server.gate import InFlight

_LOOK_SECONDS = 5.0
"""Time between two checks, in seconds. Returning memory takes tens of milliseconds and runs only
while no request is in progress."""


def find_trim() -> Callable[[], object] | None:
    """Return a function that returns free memory to the system; None if the C library has none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return None if trim is None else lambda: trim(0)


async def give_back_when_idle(
    in_flight: InFlight, trim: Callable[[], object] | None, look_seconds: float = _LOOK_SECONDS
) -> None:
    """Return free memory to the system whenever requests have ended and none is in progress.

    Runs until cancelled. Without `trim`, it returns immediately.
    """
    seen = in_flight.seen
    while trim is not None:
        await asyncio.sleep(look_seconds)
        if in_flight.count == 0 and in_flight.seen != seen:
            seen = in_flight.seen
            await asyncio.to_thread(trim)

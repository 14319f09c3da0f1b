"""Giving memory back that the allocator keeps: long requests would otherwise be held for ever."""

import asyncio
import ctypes
from collections.abc import Callable

from llmservice_server.gate import InFlight

_LOOK_SECONDS = 5.0
"""How often to look. Giving back takes tens of milliseconds, and only where nobody waits."""


def find_trim() -> Callable[[], object] | None:
    """Return what gives free memory back to the system, None where the C library cannot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return None if trim is None else lambda: trim(0)


async def give_back_when_idle(
    in_flight: InFlight, trim: Callable[[], object] | None, look_seconds: float = _LOOK_SECONDS
) -> None:
    """Trim whenever requests have been answered and none is in flight; runs until cancelled."""
    seen = in_flight.seen
    while trim is not None:
        await asyncio.sleep(look_seconds)
        if in_flight.count == 0 and in_flight.seen != seen:
            seen = in_flight.seen
            await asyncio.to_thread(trim)

"""Runs what never ends by itself while a test goes on."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def running(endless: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a coroutine beside the context, and cancel it at the end.

    Raises AssertionError if it has ended before.
    """
    task = asyncio.create_task(endless)
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])

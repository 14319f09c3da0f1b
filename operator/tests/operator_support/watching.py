"""What the tests of the watches share."""

import asyncio
from collections.abc import Callable


async def eventually_true(check: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return as soon as the check holds; fail when it does not hold within the seconds."""
    try:
        async with asyncio.timeout(seconds):
            while not check():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it did not become true within {seconds:g} s") from None

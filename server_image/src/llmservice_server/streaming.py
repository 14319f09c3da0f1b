"""Formats server-sent events, and cancels work when the client disconnects."""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")

STREAM_END = "data: [DONE]\n\n"
"""Last event of a complete stream."""


def event(data: dict[str, object], name: str | None = None) -> str:
    """Return a server-sent event. Without a name, its type is the default, `message`."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of the work; cancel it and raise ClientDisconnect if the client leaves.

    The request's body must have been read; further data from the client is dropped. The framework
    itself cancels a stream, but lets a plain handler continue without a client.
    """
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def prefetched(source: AsyncGenerator[T, None], count: int = 1) -> AsyncGenerator[T, None]:
    """Wait for the first `count` items, and return a generator of all items.

    An error of a request appears with the first item from the engine. Because this function waits
    for that item, the response gets the status of the error. Otherwise, the error would break a
    response that has started with 200.
    """
    first = [await anext(source) for _ in range(count)]
    return _after(first, source)


async def _after(first: list[T], source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    try:
        for item in first:
            yield item
        async for item in source:
            yield item
    finally:
        await source.aclose()

"""How the picker tells the supervisor its metrics, and which requests it refuses."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from llmservice_operator.api.router_messages import RouterReport

STATUS_SOCKET: Final = "picker.sock"
"""Socket in the run directory. A client that connects gets the status as JSON."""

HELD_SOCKET: Final = "held.sock"
"""Socket in the run directory. A client that connects gets a line when the picker holds a
request."""

RETRY_SECONDS: Final = 0.25
"""Time in seconds between two attempts to reach the picker."""

READ_SECONDS: Final = 1.0
"""Longest wait, in seconds, for the status of the picker."""


class PickerStatus(BaseModel):
    """The status of the picker."""

    model_config = ConfigDict(frozen=True)

    metrics: str = ""
    """Metrics in the text format of Prometheus."""
    report: RouterReport = RouterReport()


async def serve_status(read: Callable[[], PickerStatus], folder: Path) -> asyncio.Server:
    """Serve the status at the socket in the run directory until the result is closed."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(read().model_dump_json().encode())
        writer.close()

    return await asyncio.start_unix_server(answer, folder / STATUS_SOCKET)


async def read_status(folder: Path) -> PickerStatus:
    """Return the status of the picker; an empty one while the picker does not answer."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            reader, writer = await asyncio.open_unix_connection(folder / STATUS_SOCKET)
            try:
                return PickerStatus.model_validate_json(await reader.read())
            finally:
                writer.close()
    except (OSError, TimeoutError, ValidationError):
        return PickerStatus()


async def serve_held(until_held: Callable[[], Awaitable[object]], folder: Path) -> asyncio.Server:
    """Serve at the socket in the run directory until the result is closed.

    `until_held` returns when the picker holds a request.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waits = (asyncio.ensure_future(until_held()), asyncio.ensure_future(reader.read()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if waits[0].done():
                writer.write(b"\n")
        finally:
            for each in waits:
                each.cancel()
            writer.close()

    return await asyncio.start_unix_server(answer, folder / HELD_SOCKET)


async def wait_until_held(folder: Path) -> None:
    """Return when the picker holds a request, however often it starts again meanwhile."""
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(folder / HELD_SOCKET)
            try:
                if await reader.readline():
                    return
            finally:
                writer.close()
        except OSError:
            pass  # the picker has not started yet, or has ended
        await asyncio.sleep(RETRY_SECONDS)

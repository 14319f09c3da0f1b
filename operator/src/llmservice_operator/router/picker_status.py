"""How the picker tells the supervisor its metrics, and which requests it refuses."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from llmservice_operator.api.router_messages import RouterReport

STATUS_SOCKET: Final = "picker.sock"
"""Socket in the run directory. A client that connects gets the status as JSON."""

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

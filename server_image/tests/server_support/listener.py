"""Defines an application for a real listener, and a client that sends raw bytes to the listener."""

import asyncio
from typing import Any, Self

from llmservice_server.connection import LimitedConnection
from llmservice_server.listener import Listener

_SECONDS = 30.0
"""Time limit in seconds of a step that takes milliseconds on an idle machine."""


class Echo:
    """An ASGI application that records its requests, and can wait before it responds."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.answer = b"x"
        self.reads = True
        """True if the application reads the body of a request before it responds."""
        self.is_of_known_length = True
        """True if the response has a length and one part. Otherwise, `answer` is sent twice."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        size, more = 0, self.reads
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            more = message["more_body"]
        await self.go_on.wait()
        body = self.answer or str(size).encode()
        head = [(b"content-length", b"%d" % len(body))] if self.is_of_known_length else []
        await send({"type": "http.response.start", "status": 200, "headers": head})
        if not self.is_of_known_length:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": body})


class Raw:
    """A client that sends raw bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, listener: Listener) -> Self:
        port = listener._listening.getsockname()[1]
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def answer_to(self, sent: bytes) -> bytes:
        """Send bytes, and return all bytes that the server sends until it closes the connection."""
        self.writer.write(sent)
        received = b""
        try:
            async with asyncio.timeout(_SECONDS):
                while part := await self.reader.read(65536):
                    received += part
        except ConnectionError:
            pass
        return received

    async def receive(self, size: int) -> None:
        """Read exactly `size` bytes of the response."""
        async with asyncio.timeout(_SECONDS):
            await self.reader.readexactly(size)


async def held_by(listener: Listener) -> LimitedConnection:
    """Wait for the only connection of a listener, and return it."""
    async with asyncio.timeout(_SECONDS):
        while not listener.server_state.connections:
            await asyncio.to_thread(lambda: None)
    (held,) = listener.server_state.connections
    assert isinstance(held, LimitedConnection)
    return held

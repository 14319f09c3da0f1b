"""What a client may do to a connection, tried on a real listener by raw bytes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmservice_server import connection
from llmservice_server.connection import LimitedConnection
from llmservice_server.listener import Listener, bind

JSON = b"content-type: application/json\r\n"


class Echo:
    """An application that tells what it was given, or waits before it answers."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.answer = b"x"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            more = message["more_body"]
        await self.go_on.wait()
        body = self.answer or str(size).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def listener(echo: Echo) -> AsyncIterator[Listener]:
    listening = bind(0)
    started = Listener(echo, listening)
    started.start()
    yield started
    echo.go_on.set()
    await started.stop()


@pytest.fixture
async def client(listener: Listener) -> AsyncIterator["Raw"]:
    opened = await Raw.open(listener)
    yield opened
    opened.writer.close()


class Raw:
    """A client that sends bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, listener: Listener) -> "Raw":
        port = listener._listening.getsockname()[1]
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def answer_to(self, sent: bytes) -> bytes:
        """Return all that is answered until the server closes the connection."""
        self.writer.write(sent)
        received = b""
        try:
            async with asyncio.timeout(5):
                while part := await self.reader.read(65536):
                    received += part
        except ConnectionError:
            pass
        return received


def error_in(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"x-request-id: " in head
    error: dict[str, Any] = json.loads(body)["error"]
    assert head.startswith(b"HTTP/1.1 %d " % error["code"])
    return error


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n: no name\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\x00c\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\n c\r\n\r\n",
        b"BREW / HTTP/1.1\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n",
    ],
    ids=str,
)
async def test_what_is_no_request_is_refused_in_the_one_envelope(
    client: Raw, nonsense: bytes
) -> None:
    assert error_in(await client.answer_to(nonsense))["code"] == 400


@pytest.mark.parametrize(
    "flood",
    [
        b"GET /" + b"a" * 600_000,
        b"GET / HTTP/1.1\r\n" + b"a" * 600_000,
        b"GET / HTTP/1.1\r\na: " + b"b" * 600_000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 257 + b"\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;a=" + b"b" * 600_000,
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 100_000,
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: " + b"b" * 600_000,
    ],
    ids=lambda flood: str(flood[-80:]),
)
async def test_floods_around_a_body_are_refused(client: Raw, flood: bytes) -> None:
    assert error_in(await client.answer_to(flood))["code"] == 431


async def test_a_body_in_chunks_of_one_byte_passes(client: Raw, echo: Echo) -> None:
    echo.answer = b""
    head = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    answer = await client.answer_to(head + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n")
    assert b"50000" in answer


async def test_trailers_are_no_headers(client: Raw, echo: Echo) -> None:
    head = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    answer = await client.answer_to(head + b"0\r\nx-api-key: stolen\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    (scope,) = echo.scopes
    assert b"x-api-key" not in dict(scope["headers"])


async def test_nothing_is_put_into_an_answer_that_is_under_way(client: Raw, echo: Echo) -> None:
    echo.go_on.clear()
    assert await client.answer_to(b"GET / HTTP/1.1\r\n\r\nnonsense\r\n\r\n") == b""


async def test_a_few_requests_may_wait_on_one_connection(client: Raw, echo: Echo) -> None:
    last = b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n"
    answer = await client.answer_to(b"GET / HTTP/1.1\r\n\r\n" * 20 + last)
    assert answer.count(b"HTTP/1.1 200 ") == 21


async def test_thousands_may_not(client: Raw, echo: Echo) -> None:
    echo.go_on.clear()
    assert await client.answer_to(b"GET / HTTP/1.1\r\n\r\n" * 5000) == b""
    assert len(echo.scopes) == 1


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET / HTTP/1.1\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n12",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\n",
    ],
    ids=str,
)
async def test_who_never_ends_a_request_loses_the_connection(
    client: Raw, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(connection, "MESSAGE_SECONDS", 0.2)
    assert await client.answer_to(beginning) == b""


async def test_who_waits_for_an_answer_keeps_the_connection(
    client: Raw, listener: Listener, monkeypatch: pytest.MonkeyPatch, echo: Echo
) -> None:
    monkeypatch.setattr(connection, "MESSAGE_SECONDS", 0.2)
    echo.go_on.clear()
    client.writer.write(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
    while not echo.scopes:
        await asyncio.to_thread(lambda: None)

    for held in listener.server_state.connections:
        assert isinstance(held, LimitedConnection)
        held.abort_if_stuck(time.monotonic() + 3600)
    echo.go_on.set()

    assert (await client.answer_to(b"")).startswith(b"HTTP/1.1 200 ")


async def test_who_does_not_read_loses_the_connection(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, echo: Echo
) -> None:
    monkeypatch.setattr(connection, "STUCK_SECONDS", 0.2)
    echo.answer = b"x" * 50_000_000
    client = await Raw.open(listener)
    client.writer.write(b"GET / HTTP/1.1\r\n\r\n")
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]

    async with asyncio.timeout(10):
        while not echo.scopes or listener.server_state.connections:
            await asyncio.to_thread(lambda: None)

    client.writer.close()

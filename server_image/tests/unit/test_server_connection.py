"""Tests the limits of a client's connection, with raw bytes on a real listener."""

import asyncio
import json
import time
from typing import Any

import pytest

from llmservice_server import connection
from llmservice_server import listener as listener_module
from llmservice_server.connection import KEEP_ALIVE_SECONDS, STUCK_SECONDS
from llmservice_server.listener import Listener
from server_support.listener import Echo, Raw, held_by
from shared_support.waiting import PATIENCE

pytest_plugins = ("listener_fixtures",)

JSON = b"content-type: application/json\r\n"


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


async def test_a_client_of_the_oldest_http_gets_no_chunks(client: Raw, echo: Echo) -> None:
    echo.is_of_known_length = False
    answer = await client.answer_to(b"GET / HTTP/1.0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head
    assert body == b"xx"


async def test_a_client_of_the_oldest_http_gets_the_length_where_it_is_known(
    client: Raw,
) -> None:
    head, _, body = (await client.answer_to(b"GET / HTTP/1.0\r\n\r\n")).partition(b"\r\n\r\n")
    assert b"content-length: 1" in head
    assert body == b"x"


async def test_any_other_client_gets_chunks(client: Raw, echo: Echo) -> None:
    echo.is_of_known_length = False
    request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    head, _, body = (await client.answer_to(request)).partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert body == b"1\r\nx\r\n1\r\nx\r\n0\r\n\r\n"


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


async def test_a_connection_that_never_had_a_request_closes_like_one_that_had(
    client: Raw, listener: Listener
) -> None:
    held, opened = await held_by(listener), time.monotonic()
    held.end_if_overdue(opened + KEEP_ALIVE_SECONDS - 1, KEEP_ALIVE_SECONDS)
    assert not held.transport.is_closing()

    held.end_if_overdue(opened + KEEP_ALIVE_SECONDS + 1, KEEP_ALIVE_SECONDS)

    assert await client.answer_to(b"") == b""


async def test_who_waits_for_an_answer_keeps_the_connection(
    client: Raw, listener: Listener, monkeypatch: pytest.MonkeyPatch, echo: Echo
) -> None:
    monkeypatch.setattr(connection, "MESSAGE_SECONDS", 0.2)
    echo.go_on.clear()
    client.writer.write(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
    while not echo.scopes:
        await asyncio.to_thread(lambda: None)

    held = await held_by(listener)
    held.end_if_overdue(time.monotonic() + 3600, KEEP_ALIVE_SECONDS)
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

    async with asyncio.timeout(PATIENCE):
        while not echo.scopes or listener.server_state.connections:
            await asyncio.to_thread(lambda: None)

    client.writer.close()


@pytest.mark.parametrize("ending", [b"", b"connection: close\r\n"], ids=["kept", "closing"])
async def test_who_reads_slowly_keeps_the_connection_as_long_as_it_reads(
    listener: Listener, client: Raw, echo: Echo, ending: bytes
) -> None:
    echo.answer = b"x" * 50_000_000
    client.writer.write(b"GET / HTTP/1.1\r\n" + ending + b"\r\n")
    held = await held_by(listener)
    await client.receive(1)
    now = time.monotonic()
    for _ in range(10):
        left = held.unsent_bytes
        held.end_if_overdue(now, KEEP_ALIVE_SECONDS)
        # The kernel may free more in one step than these 600,000 bytes.
        await client.receive(600_000)
        async with asyncio.timeout(PATIENCE):
            while held.unsent_bytes >= left:
                await asyncio.to_thread(lambda: None)
        now += STUCK_SECONDS - 1

    held.end_if_overdue(now, KEEP_ALIVE_SECONDS)
    await asyncio.to_thread(lambda: None)
    assert held in listener.server_state.connections

    async with asyncio.timeout(PATIENCE):
        while listener.server_state.connections:
            now += STUCK_SECONDS + 1
            held.end_if_overdue(now, KEEP_ALIVE_SECONDS)
            await asyncio.to_thread(lambda: None)


@pytest.mark.parametrize(
    ("request_", "then"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"\r\n"),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n", b"x"),
    ],
    ids=["an empty line", "the body of an answered request"],
)
async def test_what_is_no_request_keeps_no_connection(
    listener: Listener, client: Raw, echo: Echo, request_: bytes, then: bytes
) -> None:
    echo.reads = False
    client.writer.write(request_)
    await client.reader.readuntil(b"\r\n\r\nx")
    client.writer.write(then)
    held = await held_by(listener)
    while held.timeout_keep_alive_task is not None:
        await asyncio.to_thread(lambda: None)

    now = time.monotonic()
    held.end_if_overdue(now, KEEP_ALIVE_SECONDS)
    client.writer.write(b"\r\n")
    held.end_if_overdue(now + KEEP_ALIVE_SECONDS - 1, KEEP_ALIVE_SECONDS)
    assert not held.transport.is_closing()

    held.end_if_overdue(now + KEEP_ALIVE_SECONDS + 1, KEEP_ALIVE_SECONDS)
    assert await client.answer_to(b"") == b""


async def test_a_connection_is_kept_longer_than_proxies_keep_theirs(
    listener: Listener, client: Raw
) -> None:
    client.writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await client.reader.readuntil(b"\r\n\r\nx")
    held = await held_by(listener)
    assert held.timeout_keep_alive_task is not None
    # Go keeps idle connections for 90 seconds; nginx and AWS's load balancers keep them for 60.
    assert held.timeout_keep_alive_task.when() - asyncio.get_running_loop().time() > 90


async def test_a_connection_that_is_used_again_and_again_is_never_idle_for_long(
    listener: Listener, client: Raw
) -> None:
    now = time.monotonic()
    held = await held_by(listener)
    for _ in range(5):
        client.writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\nx")
        held.end_if_overdue(now, KEEP_ALIVE_SECONDS)
        now += KEEP_ALIVE_SECONDS - 1
    assert not held.transport.is_closing()


async def test_a_listener_that_stops_waits_for_no_idle_connection(
    listener: Listener, client: Raw
) -> None:
    client.writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await client.reader.readuntil(b"\r\n\r\nx")
    async with asyncio.timeout(listener_module._CUT_AFTER_SECONDS):
        await listener.stop()
    assert await client.reader.read() == b""

import asyncio

import pytest
from fastapi import FastAPI, Request

from llmservice_server import connection
from llmservice_server import listener as listener_module
from llmservice_server.app import attach_engine_app
from llmservice_server.drain import drain
from llmservice_server.lifecycle import Phase
from llmservice_server.listener import Listener
from llmservice_server.settings import ServerSettings
from llmservice_server.streaming import until_disconnect
from server_support.in_process import Client, make_exchange, make_stack
from server_support.listener import Echo, Raw
from shared_support.waiting import PATIENCE

pytest_plugins = ("listener_fixtures",)


def settings(pre_stop: float = 0.0, timeout: float = 30.0) -> ServerSettings:
    return ServerSettings(pre_stop_seconds=pre_stop, drain_timeout_seconds=timeout)


async def test_is_over_at_once_when_nothing_is_in_flight(listener: Listener) -> None:
    stack = make_stack()
    await asyncio.wait_for(
        drain(stack.lifecycle, stack.in_flight, listener, settings(), asyncio.Event()),
        timeout=PATIENCE,
    )
    assert stack.lifecycle.phase is Phase.DRAINING
    assert not stack.lifecycle.accepts_requests


async def test_refuses_from_the_moment_at_which_it_is_seen_to_drain_without_pre_stop_time(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = make_stack()
    accepts_when_seen: list[bool] = []
    enter = stack.lifecycle.enter

    def note(phase: Phase) -> None:
        enter(phase)
        accepts_when_seen.append(stack.lifecycle.accepts_requests)

    monkeypatch.setattr(stack.lifecycle, "enter", note)
    await drain(stack.lifecycle, stack.in_flight, listener, settings(), asyncio.Event())

    assert accepts_when_seen == [False]


async def test_still_accepts_requests_for_the_first_seconds(listener: Listener) -> None:
    stack = make_stack()
    draining = asyncio.ensure_future(
        drain(stack.lifecycle, stack.in_flight, listener, settings(pre_stop=30), asyncio.Event())
    )
    await asyncio.wait((draining,), timeout=0.05)

    assert stack.lifecycle.phase is Phase.DRAINING
    assert stack.lifecycle.accepts_requests
    draining.cancel()


async def test_waits_for_the_last_request_in_flight(listener: Listener) -> None:
    stack = make_stack()
    with stack.in_flight.holding(make_exchange()):
        draining = asyncio.ensure_future(
            drain(stack.lifecycle, stack.in_flight, listener, settings(), asyncio.Event())
        )
        await asyncio.wait((draining,), timeout=0.05)
        assert not draining.done()
        assert not stack.lifecycle.accepts_requests

    await asyncio.wait_for(draining, timeout=PATIENCE)


async def test_gives_up_at_the_drain_timeout(listener: Listener) -> None:
    stack = make_stack()
    with stack.in_flight.holding(make_exchange()):
        await asyncio.wait_for(
            drain(
                stack.lifecycle,
                stack.in_flight,
                listener,
                settings(timeout=0.02),
                asyncio.Event(),
            ),
            timeout=PATIENCE,
        )


async def test_does_not_wait_for_answers_that_a_dead_engine_will_never_give(
    listener: Listener,
) -> None:
    stack = make_stack()
    died = asyncio.Event()
    with stack.in_flight.holding(make_exchange()):
        draining = asyncio.ensure_future(
            drain(stack.lifecycle, stack.in_flight, listener, settings(pre_stop=30), died)
        )
        await asyncio.wait((draining,), timeout=0.02)
        died.set()
        await asyncio.wait_for(draining, timeout=PATIENCE)


async def test_a_refused_request_gets_an_answer_and_prolongs_no_drain(listener: Listener) -> None:
    stack = make_stack()
    draining = asyncio.ensure_future(
        drain(stack.lifecycle, stack.in_flight, listener, settings(), asyncio.Event())
    )
    await asyncio.wait((draining,), timeout=0.05)
    assert not draining.done()
    statuses = []
    for _ in range(100):
        statuses += [
            (await Client(stack.app).get(path)).status for path in ("/v1/models", "/nothing")
        ]
        await asyncio.wait((draining,), timeout=0.05)
        if draining.done():
            break
    assert draining.done()
    assert set(statuses) == {503, 404}


async def test_an_admitted_request_starts_the_last_wait_again() -> None:
    stack = make_stack()
    quiet = asyncio.ensure_future(stack.in_flight.wait_until_quiet(0.2))
    for _ in range(4):
        with stack.in_flight.holding(make_exchange()):
            await asyncio.wait((quiet,), timeout=0.1)
        assert not quiet.done()
    await asyncio.wait_for(quiet, timeout=PATIENCE)


async def test_tells_those_whom_the_drain_timeout_cuts(listener: Listener) -> None:
    stack = make_stack()
    inner = FastAPI()

    @inner.get("/v1/models")
    async def hang(request: Request) -> dict[str, str]:
        await until_disconnect(request, asyncio.Event().wait())
        return {}

    attach_engine_app(stack.app, inner)
    asking = asyncio.ensure_future(Client(stack.app).get("/v1/models"))
    while stack.in_flight.count == 0:
        await asyncio.wait((asking,), timeout=0)

    await drain(stack.lifecycle, stack.in_flight, listener, settings(timeout=0.02), asyncio.Event())

    answer = await asking
    assert (answer.status, answer.headers["connection"]) == (503, "close")
    assert "had to stop" in answer.json()["error"]["message"]
    assert stack.in_flight.count == 0


async def ask_for_much(client: Raw, echo: Echo) -> None:
    """Request a large response, which the application sends in one part, and read one byte of
    it."""
    echo.answer = b"x" * 20_000_000
    client.writer.write(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
    await client.receive(1)


async def test_waits_until_a_client_has_read_what_it_was_answered(
    listener: Listener, client: Raw, echo: Echo
) -> None:
    await ask_for_much(client, echo)
    stack = make_stack()
    draining = asyncio.ensure_future(
        drain(stack.lifecycle, stack.in_flight, listener, settings(), asyncio.Event())
    )
    await asyncio.wait((draining,), timeout=1)
    assert not draining.done()

    assert (await client.answer_to(b"")).count(b"x") == len(echo.answer)
    await asyncio.wait_for(draining, timeout=PATIENCE)


@pytest.mark.parametrize(("stuck", "timeout"), [(0.1, 30.0), (60.0, 1.0)])
async def test_does_not_wait_for_who_reads_nothing_nor_beyond_the_drain_timeout(
    listener: Listener,
    client: Raw,
    echo: Echo,
    monkeypatch: pytest.MonkeyPatch,
    stuck: float,
    timeout: float,
) -> None:
    monkeypatch.setattr(connection, "STUCK_SECONDS", stuck)
    await ask_for_much(client, echo)
    stack = make_stack()
    await asyncio.wait_for(
        drain(
            stack.lifecycle, stack.in_flight, listener, settings(timeout=timeout), asyncio.Event()
        ),
        timeout=25,
    )


async def test_lets_idle_connections_go_while_it_waits_for_others(
    listener: Listener, client: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "_LAST_IDLE_SECONDS", 0.1)
    client.writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await client.reader.readuntil(b"\r\n\r\nx")
    stack = make_stack()
    with stack.in_flight.holding(make_exchange()):
        draining = asyncio.ensure_future(
            drain(stack.lifecycle, stack.in_flight, listener, settings(), asyncio.Event())
        )
        assert await client.answer_to(b"") == b""
        assert not draining.done()
    await draining

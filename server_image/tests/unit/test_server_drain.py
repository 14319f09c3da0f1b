import asyncio

from llmservice_server.drain import drain
from llmservice_server.lifecycle import Phase
from llmservice_server.settings import ServerSettings
from server_support import make_stack


def settings(pre_stop: float = 0.0, timeout: float = 30.0) -> ServerSettings:
    return ServerSettings(pre_stop_seconds=pre_stop, drain_timeout_seconds=timeout)


async def test_is_over_at_once_when_nothing_is_in_flight() -> None:
    stack = make_stack()
    await asyncio.wait_for(
        drain(stack.lifecycle, stack.in_flight, settings(), asyncio.Event(), lambda: None),
        timeout=5,
    )
    assert stack.lifecycle.phase is Phase.DRAINING
    assert not stack.lifecycle.accepts_requests


async def test_lets_go_of_connections_when_it_begins_to_refuse_and_not_before() -> None:
    stack = make_stack()
    refusing_when_released: list[bool] = []
    with stack.in_flight:
        draining = asyncio.ensure_future(
            drain(
                stack.lifecycle,
                stack.in_flight,
                settings(pre_stop=0.01),
                asyncio.Event(),
                lambda: refusing_when_released.append(not stack.lifecycle.accepts_requests),
            )
        )
        await asyncio.wait((draining,), timeout=0.2)
        assert refusing_when_released == [True]
    await draining


async def test_still_accepts_requests_for_the_first_seconds() -> None:
    stack = make_stack()
    draining = asyncio.ensure_future(
        drain(
            stack.lifecycle, stack.in_flight, settings(pre_stop=30), asyncio.Event(), lambda: None
        )
    )
    await asyncio.wait((draining,), timeout=0.05)

    assert stack.lifecycle.phase is Phase.DRAINING
    assert stack.lifecycle.accepts_requests
    draining.cancel()


async def test_waits_for_the_last_request_in_flight() -> None:
    stack = make_stack()
    with stack.in_flight:
        draining = asyncio.ensure_future(
            drain(stack.lifecycle, stack.in_flight, settings(), asyncio.Event(), lambda: None)
        )
        await asyncio.wait((draining,), timeout=0.05)
        assert not draining.done()
        assert not stack.lifecycle.accepts_requests

    await asyncio.wait_for(draining, timeout=5)


async def test_gives_up_at_the_drain_timeout() -> None:
    stack = make_stack()
    with stack.in_flight:
        await asyncio.wait_for(
            drain(
                stack.lifecycle,
                stack.in_flight,
                settings(timeout=0.02),
                asyncio.Event(),
                lambda: None,
            ),
            timeout=5,
        )


async def test_does_not_wait_for_answers_that_a_dead_engine_will_never_give() -> None:
    stack = make_stack()
    died = asyncio.Event()
    with stack.in_flight:
        draining = asyncio.ensure_future(
            drain(stack.lifecycle, stack.in_flight, settings(pre_stop=30), died, lambda: None)
        )
        await asyncio.wait((draining,), timeout=0.02)
        died.set()
        await asyncio.wait_for(draining, timeout=5)

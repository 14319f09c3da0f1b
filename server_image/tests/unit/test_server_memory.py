import asyncio

from llmservice_server.gate import InFlight
from llmservice_server.memory import find_trim, give_back_when_idle
from server_support.in_process import make_exchange


async def test_gives_back_once_after_requests_and_never_while_one_is_in_flight() -> None:
    in_flight, trimmed = InFlight(), 0

    def trim() -> None:
        nonlocal trimmed
        trimmed += 1

    giving = asyncio.ensure_future(give_back_when_idle(in_flight, trim, look_seconds=0.01))
    await asyncio.wait((giving,), timeout=0.1)
    assert trimmed == 0
    with in_flight.holding(make_exchange()):
        await asyncio.wait((giving,), timeout=0.1)
        assert trimmed == 0
    await asyncio.wait((giving,), timeout=0.2)
    assert trimmed == 1
    giving.cancel()


def test_finds_how_to_give_back_here() -> None:
    trim = find_trim()
    assert trim is not None
    trim()

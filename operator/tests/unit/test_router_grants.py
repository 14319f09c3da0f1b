import asyncio

import pytest

from llmservice_operator.router.grants import Grants


async def test_bytes_within_the_budget_are_granted_at_once() -> None:
    grants = Grants(100, max_waiting=0)
    assert await grants.take(60)
    assert await grants.take(40)
    assert not await grants.take(1)
    grants.give_back(40)
    assert await grants.take(40)


async def test_a_request_waits_for_its_turn() -> None:
    grants = Grants(100, max_waiting=2)
    assert await grants.take(100)
    first = asyncio.ensure_future(grants.take(80))
    await asyncio.wait({first}, timeout=0)
    # This request would fit before the first one, but must not overtake it.
    second = asyncio.ensure_future(grants.take(10))
    await asyncio.wait({second}, timeout=0)
    assert not await grants.take(1)
    grants.give_back(30)
    await asyncio.wait({second}, timeout=0.01)
    assert not first.done()
    assert not second.done()
    grants.give_back(70)
    assert [await first, await second] == [True, True]
    assert grants.granted == 90


async def test_a_request_that_waits_too_long_gets_nothing_and_lets_others_pass() -> None:
    grants = Grants(100, max_waiting=2)
    assert await grants.take(50)
    large = asyncio.ensure_future(grants.take(90, seconds=0.01))
    await asyncio.wait({large}, timeout=0)
    small = asyncio.ensure_future(grants.take(50))
    assert not await large
    assert await small
    assert (grants.granted, grants.waiting) == (100, 0)


@pytest.mark.parametrize("is_granted", [False, True])
async def test_a_cancelled_request_keeps_no_bytes(is_granted: bool) -> None:
    grants = Grants(100, max_waiting=1)
    assert await grants.take(100)
    waiting = asyncio.ensure_future(grants.take(10))
    await asyncio.wait({waiting}, timeout=0)
    if is_granted:
        grants.give_back(100)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (grants.granted, grants.waiting) == (0 if is_granted else 100, 0)


async def test_a_request_above_the_budget_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="101 bytes are more than the 100"):
        await Grants(100).take(101)

"""Tests that a wait returns the first true result, and that a failure shows the last one."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator

import pytest

from shared_support.waiting import eventually, eventually_in_loop, holds_for


def in_turn(*results: object) -> Callable[[], object]:
    """Return a check that returns these results in order, and raises those that are errors."""
    left: Iterator[object] = iter(results)

    def check() -> object:
        result = next(left)
        if isinstance(result, Exception):
            raise result
        return result

    return check


def test_the_first_true_result_is_returned() -> None:
    assert eventually(in_turn(None, 0, "", 7, 8), every=0) == 7


@pytest.mark.parametrize(
    "error",
    [AssertionError("wrong"), KeyError("absent"), IndexError(), ConnectionRefusedError()],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_means_not_yet_is_tried_again(error: Exception) -> None:
    assert eventually(in_turn(error, "there"), every=0) == "there"


def test_any_other_error_ends_the_wait_at_once() -> None:
    with pytest.raises(ZeroDivisionError):
        eventually(in_turn(ZeroDivisionError(), "there"), every=0)


def test_a_wait_that_fails_says_for_what_and_what_it_saw_last() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.02 s: three pods; last: \[\]"):
        eventually(list, 0.02, "three pods", every=0.01)


def test_a_wait_that_fails_names_the_last_error() -> None:
    def check() -> None:
        raise AssertionError("two pods")

    with pytest.raises(AssertionError, match=r"last: AssertionError.*two pods") as failed:
        eventually(check, 0, "three pods")

    assert str(failed.value.__cause__) == "two pods"


def test_a_description_that_is_a_function_is_read_when_the_wait_has_failed() -> None:
    log: list[str] = []

    with pytest.raises(AssertionError, match="the server's log: started"):
        eventually(lambda: log.append("started"), 0, lambda: f"the server's log: {log[0]}")


def test_a_wait_polls_less_often_the_longer_it_lasts() -> None:
    tries: list[float] = []

    with pytest.raises(AssertionError):
        eventually(lambda: tries.append(time.monotonic()), 0.6)

    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert gaps[0] < 0.04 < gaps[-1] < 0.2


def test_a_condition_that_holds_is_read_until_the_end() -> None:
    started = time.monotonic()

    holds_for(0.05, lambda: True, every=0.01)

    assert time.monotonic() - started >= 0.05


def test_a_condition_that_ceases_to_hold_fails() -> None:
    with pytest.raises(AssertionError):
        holds_for(10, in_turn(True, True, False), every=0)


async def test_what_happens_in_the_event_loop_of_the_wait_can_be_awaited() -> None:
    happened = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, happened.set)

    await eventually_in_loop(happened.is_set)

    assert happened.is_set()


async def test_a_wait_in_an_event_loop_fails_in_time_and_says_what_it_saw_last() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.05 s: .*; last: \[\]"):
        await eventually_in_loop(list, 0.05)

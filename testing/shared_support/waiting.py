"""Wait for what happens in another process, and fail with the last thing that was seen."""

import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, RetryError, Retrying
from tenacity.retry import retry_if_exception_type, retry_if_not_result
from tenacity.stop import stop_after_delay
from tenacity.wait import wait_fixed

Seen = TypeVar("Seen")

NOT_YET = (AssertionError, LookupError, OSError)
"""Errors of a check that mean "not yet": a wrong value, a missing field, nobody listening."""


def eventually(
    check: Callable[[], Seen | None],
    within: float = 10.0,
    describe: str | Callable[[], str] = "",
    *,
    every: float | None = None,
) -> Seen:
    """Return the first true result of `check`, which runs again while it is false or NOT_YET.

    Args:
        check: read what is awaited; any other error ends the wait at once.
        within: seconds until the wait fails; the last try may end later.
        describe: what is awaited, for the message; a function is called once the wait has failed.
        every: seconds between two tries; by default a tenth of the time that has gone by.

    Raises:
        AssertionError: not in time; the text has the description and the last result or error.

    """
    retrying = Retrying(
        stop=stop_after_delay(within),
        wait=_a_tenth_more if every is None else wait_fixed(every),
        retry=retry_if_exception_type(NOT_YET) | retry_if_not_result(bool),
    )
    try:
        seen = retrying(check)
    except RetryError as error:
        last = error.last_attempt.exception() or error.last_attempt.result()
        awaited = describe() if callable(describe) else describe
        message = f"not within {within:g} s: {awaited or check}; last: {last!r}"
        raise AssertionError(message) from error.last_attempt.exception()
    assert seen is not None, "a true result is never None"
    return seen


def _a_tenth_more(state: RetryCallState) -> float:
    """Return seconds that make a wait at most a tenth longer, without polling a busy machine."""
    return min(max(0.02, (state.seconds_since_start or 0) / 10), 0.5)


def holds_for(seconds: float, check: Callable[[], object], *, every: float = 0.1) -> None:
    """Fail when `check` is false, or raises, at any time within the seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert check()
        time.sleep(every)

"""Waits for an event in another process, and fails with the last value that was seen."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, RetryError, Retrying
from tenacity.retry import retry_if_exception_type, retry_if_not_result
from tenacity.stop import stop_after_delay
from tenacity.wait import wait_fixed

Seen = TypeVar("Seen")

PATIENCE = 120.0
"""Seconds until a wait fails that proves no speed: far more than a loaded machine needs."""

NOT_YET = (AssertionError, LookupError, OSError)
"""Errors of a check that mean "not yet": a wrong value, a missing field, or no listener."""


def eventually(
    check: Callable[[], Seen | None],
    within: float = PATIENCE,
    describe: str | Callable[[], str] = "",
    *,
    every: float | None = None,
) -> Seen:
    """Return the first true result of `check`, which runs again while it is false or NOT_YET.

    Args:
        check: reads the awaited value; any error outside NOT_YET ends the wait at once.
        within: seconds until the wait fails; the last try may end later.
        describe: name of the awaited value, for the message; a function is called on failure.
        every: seconds between two tries; by default a tenth of the elapsed time.

    Raises:
        AssertionError: no true result in time; the text has the description and the last result.

    """
    try:
        seen = Retrying(**_policy(within, every))(check)
    except RetryError as error:
        awaited = describe() if callable(describe) else describe
        raise _too_late(error, within, awaited or check) from error.last_attempt.exception()
    assert seen is not None, "a true result is never None"
    return seen


async def eventually_in_loop(check: Callable[[], object], within: float = PATIENCE) -> None:
    """Wait like `eventually` for an event in this event loop, which runs between the tries."""

    async def attempt() -> object:
        return check()

    try:
        await AsyncRetrying(**_policy(within, 0.02))(attempt)
    except RetryError as error:
        raise _too_late(error, within, check) from error.last_attempt.exception()


def _policy(within: float, every: float | None) -> dict[str, Any]:
    return {
        "stop": stop_after_delay(within),
        "wait": _a_tenth_more if every is None else wait_fixed(every),
        "retry": retry_if_exception_type(NOT_YET) | retry_if_not_result(bool),
    }


def _too_late(error: RetryError, within: float, awaited: object) -> AssertionError:
    last = error.last_attempt.exception() or error.last_attempt.result()
    return AssertionError(f"not within {within:g} s: {awaited}; last: {last!r}")


def _a_tenth_more(state: RetryCallState) -> float:
    """Return a tenth of the elapsed seconds, at least 0.02 and at most 0.5.

    A wait then ends at most a tenth late, and does not poll a busy machine often.
    """
    return min(max(0.02, (state.seconds_since_start or 0) / 10), 0.5)


def holds_for(seconds: float, check: Callable[[], object], *, every: float = 0.1) -> None:
    """Fail when `check` is false, or raises, at any time within the seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert check()
        time.sleep(every)

"""Waits until a check succeeds. A failed wait reports the last result of the check."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, RetryError, Retrying
from tenacity.retry import retry_if_exception_type, retry_if_not_result
from tenacity.stop import stop_after_delay
from tenacity.wait import wait_fixed

Seen = TypeVar("Seen")

PATIENCE = 120.0
"""Time limit in seconds of a wait that does not test speed. A loaded machine needs far less."""

NOT_YET = (AssertionError, LookupError, OSError)
"""Errors of a check that mean "not yet": a wrong value, a missing field, or no listener."""


def eventually(
    check: Callable[[], Seen | None],
    within: float = PATIENCE,
    describe: str | Callable[[], str] = "",
    *,
    every: float | None = None,
) -> Seen:
    """Call `check` until it returns a true result, and return that result.

    A false result, or an error in NOT_YET, leads to another try.

    Args:
        check: reads the awaited value. Any error outside NOT_YET ends the wait at once.
        within: seconds until the wait fails. The last try may end later.
        describe: description of the awaited value for the error message. A function is called
            only on failure, and returns the description.
        every: seconds between two tries. The default is a tenth of the elapsed time.

    Raises:
        AssertionError: there was no true result in time. The message contains the description
            and the last result.

    """
    try:
        seen = Retrying(**_policy(within, every))(check)
    except RetryError as error:
        awaited = describe() if callable(describe) else describe
        raise _too_late(error, within, awaited or check) from error.last_attempt.exception()
    assert seen is not None, "a true result is never None"
    return seen


async def eventually_in_loop(check: Callable[[], object], within: float = PATIENCE) -> None:
    """Wait as `eventually` does, while the event loop continues to run between the tries.

    Raises:
        AssertionError: there was no true result in time.

    """

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
    """Call `check` repeatedly for the given seconds; fail once it returns false or raises."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert check()
        time.sleep(every)

"""Withholds requests while the API server is overloaded or unreachable, or while a proxy responds
in its place.

The delay between the retries of a failing service grows. That limits the requests about one
service, but not those about thousands of services. So the client also limits itself. It respects
the pause that the API server requests, and limits the rate of requests that fail. A withheld
request fails without being sent.

A webhook can return the same status as an overloaded API server. A webhook belongs to the users of
a few namespaces, so its responses do not delay other requests.
"""

from collections.abc import Callable
from typing import Final

from llmservice_operator.errors import ClusterError

FAILURES_PER_SECOND: Final = 5.0
"""Maximum rate of failing requests after a burst of FAILURE_BURST requests. The HTTP client sends
some of these requests twice."""
FAILURE_BURST: Final = 20.0
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500


class Overload:
    def __init__(self, time: Callable[[], float]) -> None:
        """`time` is a clock in seconds."""
        self._time = time
        self._paused_until = 0.0
        self._tokens = FAILURE_BURST
        self._filled_at = time()

    def check(self) -> None:
        """Raise ClusterError if a request must not be sent now."""
        now = self._time()
        if now < self._paused_until:
            left = self._paused_until - now
            raise _unsent(f"the API server asks for a pause of {left:.0f} s", left)
        refill = (now - self._filled_at) * FAILURES_PER_SECOND
        self._tokens = min(FAILURE_BURST, self._tokens + refill)
        self._filled_at = now
        if self._tokens < 1:
            left = (1 - self._tokens) / FAILURES_PER_SECOND
            raise _unsent("too many requests to the API server fail", left)

    def note(self, error: ClusterError) -> None:
        """Record a request that failed, and any pause that the API server requests."""
        if not _is_of_the_server(error):
            return
        self._tokens -= 1
        if error.retry_after_seconds is not None:
            until = self._time() + error.retry_after_seconds
            self._paused_until = max(self._paused_until, until)


def _is_of_the_server(error: ClusterError) -> bool:
    """Return whether the error concerns the whole API server, and not one object or its webhook."""
    is_failure = error.status in (0, _TOO_MANY_REQUESTS) or error.status >= _SERVER_ERROR
    # The message also contains the path of the request, with names that a tenant chooses. A name
    # contains no space, so a name cannot match.
    return is_failure and "webhook " not in error.message


def _unsent(why: str, seconds: float) -> ClusterError:
    return ClusterError(f"not sent: {why}", _TOO_MANY_REQUESTS, seconds, requests=0)

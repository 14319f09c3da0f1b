"""Limits the rate of the requests of all retries together, and shares the rate among the groups
with failures.
"""

from collections.abc import Callable, Hashable


class RetryRate:
    """Limits the rate of callers after a burst. It refuses no caller, but returns a time to wait.

    A caller waits only behind the callers of its own group. If many keys of one group fail, the
    first failure in another group is still retried almost immediately.
    """

    def __init__(
        self, per_second: float, burst: int, longest_seconds: float, time: Callable[[], float]
    ) -> None:
        """`per_second` and `burst` are numbers of requests. `longest_seconds` is the longest wait
        that is returned, even with many callers.
        """
        self._per_second = per_second
        self._burst = float(burst)
        self._longest_seconds = longest_seconds
        self._time = time
        self._tokens = self._burst
        self._filled_at = time()
        self._due: dict[Hashable, float] = {}
        """Time at which the last caller of each waiting group may send its requests."""

    def reserve(self, group: Hashable, requests: int = 1) -> float:
        """Return the seconds until the caller may send its requests; 0 if it may send them now."""
        now = self._time()
        if now > self._filled_at:
            refill = (now - self._filled_at) * self._per_second
            self._tokens = min(self._burst, self._tokens + refill)
            self._filled_at = now
        self._due = {each: due for each, due in self._due.items() if due > now}
        if self._tokens >= 1 and group not in self._due:
            self._tokens -= requests
            return 0.0
        # The waiting callers use up the rate, so the next burst accumulates only after them.
        latest = now + self._longest_seconds
        self._tokens = min(self._tokens, 0.0)
        seconds = requests / self._per_second
        self._filled_at = min(self._filled_at + seconds, latest)
        waiting = len(self._due.keys() | {group})
        due = self._due.get(group, now) + waiting * seconds
        self._due[group] = min(due, latest)
        return self._due[group] - now

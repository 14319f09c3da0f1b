"""A work queue that contains each key once, gives a key to one worker at a time, and retries failed
keys with a backoff.
"""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from llmservice_operator.errors import ClusterError
from llmservice_operator.workqueue.fairness import FairKeys, Shares
from llmservice_operator.workqueue.retries import RetryRate

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """The part of an event loop that the queue needs. Tests pass a clock that they control."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer: ...


class QueueObserver(Protocol):
    """Counts the events of the queue. The class Metrics of `telemetry` implements it."""

    def added(self) -> None: ...

    def started(self, waited_seconds: float) -> None: ...

    def finished(self, seconds: float, result: str) -> None:
        """Count a pass with its result: success, requeue_after, error or timeout."""

    def retried(self) -> None: ...


@dataclass(frozen=True)
class QueueSettings:
    backoff_min_seconds: float = 0.005
    backoff_max_seconds: float = 300.0
    """Longest delay in seconds before a retry, even if the rate of retries or the API server
    requires a longer one."""
    backoff_max_of_cluster_seconds: float = 30.0
    """Longest backoff in seconds after a ClusterError. An outage may last for hours, and passes
    must succeed soon after its end."""
    backoff_jitter: float = 0.1
    """Share of a backoff by which it varies at random, so that keys that failed together are not
    retried together."""

    retries_per_second: float = 4.0
    """Maximum rate, in requests per second, at which the retries of all keys together send failed
    requests again. First attempts are not limited, because a change must be applied quickly. A
    thousand failing services must not add load to an API server that is already overloaded. A
    refused write takes three to five requests, because reads precede it."""

    retry_burst: int = 10
    timeout_seconds: float = 60.0
    """Longest time in seconds that one pass may take. A longer pass is cancelled and counts as
    failed."""
    shares: Shares = field(default_factory=Shares)


class WorkQueue(Generic[Key]):
    def __init__(
        self,
        observer: QueueObserver,
        settings: QueueSettings | None = None,
        clock: Clock | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
        group_of: Callable[[Key], Hashable] = lambda key: key,
    ) -> None:
        """`group_of` returns the group of a key, such as the namespace. The keys of a group share
        its workers.
        """
        self._observer = observer
        self._settings = settings or QueueSettings()
        self._clock = clock or asyncio.get_running_loop()
        self._uniform = uniform
        self._group_of = group_of
        self._retries = RetryRate(
            self._settings.retries_per_second,
            self._settings.retry_burst,
            self._settings.backoff_max_seconds,
            self._clock.time,
        )
        self._ready = FairKeys(group_of, self._settings.shares, self._clock.time)
        self._added_at: dict[Key, float] = {}
        """Keys that wait for a pass, with the time when they were added. If a worker is processing
        such a key, one more pass follows."""
        self._started_at: dict[Key, float] = {}
        """Keys that a worker is processing, with the start time of the pass."""
        self._failures: defaultdict[Key, int] = defaultdict(int)
        self._timers: dict[Key, tuple[float, Timer]] = {}

    def __len__(self) -> int:
        """Count the keys that wait for a pass.

        A key with a delay is counted only after the delay.
        """
        return len(self._added_at)

    def add(self, key: Key) -> None:
        """Request a pass over the key as soon as a worker is free."""
        if key in self._added_at:
            return
        self._added_at[key] = self._clock.time()
        self._observer.added()
        if key not in self._started_at:
            self._ready.put(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Request a pass after some seconds. If a delayed pass over the key is already requested,
        only the earlier of the two takes place.
        """
        due = self._clock.time() + seconds
        if key in self._timers:
            if self._timers[key][0] <= due:
                return
            self._timers.pop(key)[1].cancel()

        def ring() -> None:
            del self._timers[key]
            self.add(key)

        self._timers[key] = (due, self._clock.call_later(seconds, ring))

    def busy(self) -> int:
        """Count the workers that are processing a key."""
        return len(self._started_at)

    def unfinished_seconds(self) -> float:
        """Return the time spent so far on all passes that have not ended, in seconds."""
        now = self._clock.time()
        return sum(now - started for started in self._started_at.values())

    def longest_running_seconds(self) -> float:
        """Return the age of the oldest pass that has not ended, in seconds; 0 when none runs."""
        now = self._clock.time()
        return max((now - started for started in self._started_at.values()), default=0.0)

    async def work(self, process: Callable[[Key], Awaitable[float | None]]) -> None:
        """Process one key after another until cancelled, and schedule the next pass over each.

        `process` returns the seconds until the next pass over the key; None if no pass is due. If
        it raises an error, the key is retried with a growing backoff.
        """
        while True:
            key = await self._ready.get()
            self._start(key)
            result = "error"
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    requeue_after = await process(key)
            except TimeoutError:
                result = "timeout"
                logger.error(
                    "reconcile of %s took more than %d s and was cancelled; it is retried",
                    key,
                    self._settings.timeout_seconds,
                )
                self._retry(key)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # An operation that the pass awaited was cancelled, but not this worker.
                logger.warning("reconcile of %s was interrupted; it is retried", key)
                self._retry(key)
            except ClusterError as error:
                logger.warning("reconcile of %s failed and is retried: %s", key, error)
                self._retry_refused(key, error)
            except Exception:
                logger.exception("reconcile of %s hit an unexpected error; it is retried", key)
                self._retry(key)
            else:
                self._failures.pop(key, None)
                result = "success" if requeue_after is None else "requeue_after"
                if requeue_after is not None:
                    self.add_after(key, requeue_after)
            finally:
                self._finish(key, result)
            # A pass over a converged service never yields to the event loop. After a restart,
            # thousands of such passes in a row would keep the process from renewing its Lease and
            # responding to its probes.
            await asyncio.sleep(0)

    def _start(self, key: Key) -> None:
        now = self._clock.time()
        if key in self._timers:
            # This pass sees the newest state, so it alone decides when the next one is due.
            self._timers.pop(key)[1].cancel()
        self._observer.started(now - self._added_at.pop(key))
        self._started_at[key] = now

    def _finish(self, key: Key, result: str) -> None:
        self._observer.finished(self._clock.time() - self._started_at.pop(key), result)
        self._ready.done(key)
        if key in self._added_at:
            self._ready.put(key)

    def _retry_refused(self, key: Key, error: ClusterError) -> None:
        longest = self._settings.backoff_max_of_cluster_seconds
        self._retry(key, longest, error.retry_after_seconds or 0.0, error.requests)

    def _retry(
        self,
        key: Key,
        backoff_max_seconds: float | None = None,
        at_least_seconds: float = 0.0,
        requests: int = 1,
    ) -> None:
        settings = self._settings
        # The exponent is limited, because a float would overflow after about a thousand failures.
        backoff = settings.backoff_min_seconds * 2.0 ** min(self._failures[key], 64)
        backoff = min(backoff, backoff_max_seconds or settings.backoff_max_seconds)
        backoff *= 1 + self._uniform(-settings.backoff_jitter, settings.backoff_jitter)
        self._failures[key] += 1
        self._observer.retried()
        took = self._clock.time() - self._started_at[key]
        # A pass that stalls until its time limit must not be repeated without a pause.
        pause = took if took > settings.shares.slow_seconds else 0.0
        turn = self._retries.reserve(self._group_of(key), requests) if requests else 0.0
        wait = max(backoff, at_least_seconds, pause, turn)
        self.add_after(key, min(wait, settings.backoff_max_seconds))

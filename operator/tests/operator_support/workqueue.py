"""A clock, an observer and workers for tests of the work queue, under the control of a test."""

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from llmservice_operator.workqueue import WorkQueue

Key = TypeVar("Key", bound=Hashable)


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class StandingClock:
    """A clock that moves only when the test advances it."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, Timer, Callable[[], None]]] = []

    def time(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer:
        timer = Timer()
        heapq.heappush(self._timers, (self._now + delay, next(self._order), timer, callback))
        return timer

    def advance(self, seconds: float) -> None:
        until = self._now + seconds
        while self._timers and self._timers[0][0] <= until:
            self._now, _, timer, callback = heapq.heappop(self._timers)
            if not timer.cancelled:
                callback()
        self._now = until


class Observer:
    def __init__(self) -> None:
        self.adds = 0
        self.retries = 0
        self.waits: list[float] = []
        self.results: list[str] = []

    def added(self) -> None:
        self.adds += 1

    def started(self, waited_seconds: float) -> None:
        self.waits.append(waited_seconds)

    def finished(self, seconds: float, result: str) -> None:
        self.results.append(result)

    def retried(self) -> None:
        self.retries += 1


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def run_workers(
    queue: WorkQueue[Key], process: Callable[[Key], Awaitable[float | None]], count: int = 1
) -> list[asyncio.Task[None]]:
    workers = [asyncio.create_task(queue.work(process)) for _ in range(count)]
    await settle()
    return workers


async def stop(workers: list[asyncio.Task[None]]) -> None:
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)

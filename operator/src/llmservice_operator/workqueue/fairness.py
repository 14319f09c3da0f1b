"""Shares the workers among groups of keys, so that a slow group does not delay the others.

Only the passes of a group show whether the group is slow. A new group therefore gets few workers
until a pass over one of its keys has ended. Slow and new groups together never get all
workers, because some workers are reserved for groups that are known to be quick.
"""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Shares:
    """Limits on the workers that may be busy at a time."""

    workers: int = 32
    """Number of all workers. Most of the time, most of them wait for the API server."""
    of_group: int = 8
    of_new_group: int = 2
    for_slow_groups: int = 16
    """Workers for all slow groups together."""
    for_slow_and_new_groups: int = 24
    slow_seconds: float = 5.0
    """Longest duration of a quick pass, in seconds. A group with a longer pass is slow until one of
    its passes is quick."""
    remembered_seconds: float = 300.0
    """Time in seconds that a group still counts as slow or quick after the end of its last pass.
    After that time, the group is new again."""


class _Pace(IntEnum):
    """Speed of the passes over the keys of a group."""

    SLOW = 0
    NEW = 1
    QUICK = 2


@dataclass
class _Ended:
    """The last pass over a key of a group."""

    at: float
    was_slow: bool


class FairKeys(Generic[Key]):
    """Keys that wait for a worker. The groups that may use another worker take turns."""

    def __init__(
        self, group_of: Callable[[Key], Hashable], shares: Shares, time: Callable[[], float]
    ) -> None:
        self._group_of = group_of
        self._shares = shares
        self._time = time
        self._waiting: dict[Hashable, deque[Key]] = {}
        """Waiting keys of each group, in the order in which the groups get a worker."""
        self._running: defaultdict[Hashable, dict[Key, float]] = defaultdict(dict)
        """Keys of each group that a worker is processing, with the start time of the pass."""
        self._ended: dict[Hashable, _Ended] = {}
        """Last pass of each group, in the order in which the passes ended."""
        self._changed = asyncio.Event()

    def put(self, key: Key) -> None:
        """Add a key that waits for a worker."""
        self._waiting.setdefault(self._group_of(key), deque()).append(key)
        self._changed.set()

    async def get(self) -> Key:
        """Wait for a key whose group may use another worker, and return the key.

        The caller must call `done` when the pass over the key has ended.
        """
        while True:
            key = self._take()
            if key is not None:
                return key
            self._changed.clear()
            await self._changed.wait()

    def done(self, key: Key) -> None:
        """Record the end of the pass over a key that `get` returned."""
        group, now = self._group_of(key), self._time()
        was_slow = now - self._running[group].pop(key) > self._shares.slow_seconds
        if not self._running[group]:
            del self._running[group]
        before = self._ended.pop(group, None)
        self._ended[group] = _Ended(now, was_slow)
        if was_slow and not (before is not None and before.was_slow):
            logger.warning(
                "a pass in %s took more than %g s: all slow ones together get %d of %d workers",
                group,
                self._shares.slow_seconds,
                self._shares.for_slow_groups,
                self._shares.workers,
            )
        self._forget(now)
        self._changed.set()

    def _take(self) -> Key | None:
        """Remove and return the first key of the next group that may use another worker; None if no
        group may.
        """
        now = self._time()
        busy = dict.fromkeys(_Pace, 0)
        for group, running in self._running.items():
            busy[self._pace(group, now)] += len(running)
        for group in self._waiting:
            pace = self._pace(group, now)
            beside = sum(number for each, number in busy.items() if each <= pace)
            if len(self._running.get(group, ())) < self._of_group(pace) and beside < self._of(pace):
                break
        else:
            return None
        keys = self._waiting.pop(group)
        key = keys.popleft()
        if keys:
            self._waiting[group] = keys  # at the end, so that the other groups are next
        self._running[group][key] = now
        return key

    def _pace(self, group: Hashable, now: float) -> _Pace:
        started = min(self._running.get(group, {}).values(), default=now)
        if now - started > self._shares.slow_seconds:
            return _Pace.SLOW
        ended = self._ended.get(group)
        if ended is None:
            return _Pace.NEW
        return _Pace.SLOW if ended.was_slow else _Pace.QUICK

    def _of_group(self, pace: _Pace) -> int:
        return self._shares.of_new_group if pace is _Pace.NEW else self._shares.of_group

    def _of(self, pace: _Pace) -> int:
        """Return the number of workers that all groups with this pace or a slower one may use
        together.
        """
        match pace:
            case _Pace.SLOW:
                return self._shares.for_slow_groups
            case _Pace.NEW:
                return self._shares.for_slow_and_new_groups
            case _Pace.QUICK:
                return self._shares.workers

    def _forget(self, now: float) -> None:
        """Forget the groups whose last pass ended long ago."""
        while self._ended:
            group, ended = next(iter(self._ended.items()))
            if now - ended.at <= self._shares.remembered_seconds:
                return
            del self._ended[group]

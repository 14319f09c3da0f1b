"""The minimum number of replicas by the time: that of the spec, or more in a window of the
schedule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from llmservice_operator.api.schedule import ScheduledReplicas

_LONGEST_CHANGE_OF_CLOCKS: Final = timedelta(hours=3)
_TICK: Final = timedelta(seconds=1)
_SHORTEST_LOOK: Final = timedelta(seconds=1)


@dataclass(frozen=True)
class Floor:
    """What the schedule of a service requires at one time."""

    replicas: int = 0
    """Minimum number of replicas in the present window; 0 outside of all windows."""
    starts: datetime | None = None
    """Begin of the window for which replicas start now. None if it has begun."""
    started: datetime | None = None
    """Begin of the last window for which replicas start now. None if all of them have begun."""
    ends: datetime | None = None
    """End of the present window. None outside of all windows, and if the window never ends."""
    next_start: datetime | None = None
    """Begin of the next window. None if there is none."""
    changes_at: datetime | None = None
    """Time at which this result may change; None if it never does."""

    def holds(self, now: datetime) -> bool:
        """Return whether this result is still true, for the same arguments and a later time."""
        return self.changes_at is None or now < self.changes_at

    def look_again_seconds(self, now: datetime) -> float | None:
        """Return the seconds until this result may change; None if it never does."""
        if self.changes_at is None:
            return None
        return max(self.changes_at - now, _SHORTEST_LOOK).total_seconds()


def floor_of(
    schedule: Sequence[ScheduledReplicas],
    now: datetime,
    start_seconds: float,
    started: datetime | None = None,
) -> Floor:
    """Return the floor at `now`, if replicas need `start_seconds` until they are ready.

    For windows that begin up to `started`, replicas have already started.
    """
    lead = timedelta(seconds=start_seconds)
    horizon = now + lead if started is None else max(now + lead, started)
    windows = [_Window.of(each, now) for each in schedule]
    near = [it for it in windows if not it.is_open and it.begins_until(horizon)]
    active = [it for it in windows if it.is_open] + near
    found = max(active, key=lambda it: (it.replicas, it.is_open), default=None)
    starts = [it.start for it in windows if it.start is not None]
    changes = (
        *(it.end for it in windows if it.is_open),
        *starts,
        *(_instant(it) - lead for it in starts),
    )
    return Floor(
        replicas=0 if found is None else found.replicas,
        starts=None if found is None or found.is_open else found.start,
        started=max((it.start for it in near if it.start is not None), key=_instant, default=None),
        ends=None if found is None else found.end,
        next_start=min(starts, key=_instant, default=None),
        changes_at=min(
            (it for it in changes if it is not None and _instant(it) > _instant(now)),
            key=_instant,
            default=None,
        ),
    )


@dataclass(frozen=True)
class _Window:
    replicas: int
    is_open: bool
    start: datetime | None
    """Next begin, in the time zone of the schedule."""
    end: datetime | None
    """Next end."""

    @classmethod
    def of(cls, item: ScheduledReplicas, now: datetime) -> _Window:
        local = now.astimezone(ZoneInfo(item.time_zone))
        began, ended = _last(item.start, local), _last(item.end, local)
        return cls(
            item.min_replicas,
            is_open=began is not None and (ended is None or _instant(began) >= _instant(ended)),
            start=_next(item.start, local),
            end=_next(item.end, local),
        )

    def begins_until(self, moment: datetime) -> bool:
        return self.start is not None and _instant(self.start) <= _instant(moment)


def _instant(moment: datetime) -> datetime:
    """Return the same moment in UTC. Times of one zone are compared by their clocks, and a clock
    shows the same time twice when it goes back.
    """
    return moment.astimezone(UTC)


def _next(expression: str, local: datetime) -> datetime | None:
    """Return the first time after `local`; None if there is none."""
    found = (it for it in _times(expression, local) if _instant(it) > _instant(local))
    return next(found, None)


def _last(expression: str, local: datetime) -> datetime | None:
    """Return the last time up to `local`; None if there is none."""
    # By the clocks, a time before `local` is later if the clocks have just gone back.
    before = (_instant(local) - _LONGEST_CHANGE_OF_CLOCKS).astimezone(local.tzinfo)
    gone_back = _offset(before) - _offset(local)
    begin = local + max(gone_back, timedelta()) + _TICK
    found = (
        it for it in _times(expression, begin, reverse=True) if _instant(it) <= _instant(local)
    )
    return next(found, None)


def _offset(moment: datetime) -> timedelta:
    return moment.utcoffset() or timedelta()


def _times(expression: str, begin: datetime, *, reverse: bool = False) -> Iterator[datetime]:
    """Return the times of a cron expression. A day such as 30 February never comes."""
    try:
        yield from CronSim(expression, begin, reverse=reverse)
    except CronSimError:
        return

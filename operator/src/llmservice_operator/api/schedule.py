"""autoscaling.idle.schedule: windows of time with a minimum number of replicas."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final
from zoneinfo import ZoneInfo

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule, ValueRule

MAX_REPLICAS: Final = 1000
"""Largest number of replicas of a service."""

_DAYS: Final = "SUN MON TUE WED THU FRI SAT"


def _list_of(*values: str) -> str:
    """Return the pattern of a field of a cron expression. Each of `values` matches one value."""
    ranges = "|".join(f"{value}(-{value})?" for value in values)
    part = f"([*]|{ranges})(/[1-9][0-9]?)?"
    return f"{part}(,{part})*"


_FORM: Final = " ".join(
    (
        _list_of("[0-5]?[0-9]"),
        _list_of("([01]?[0-9]|2[0-3])"),
        _list_of("(0?[1-9]|[12][0-9]|3[01])"),
        _list_of("(0?[1-9]|1[0-2])"),
        _list_of("[0-7]", f"({_DAYS.replace(' ', '|')})"),
    )
)
_CRON: Final = re.compile(_FORM)
_RANGE: Final = re.compile("([0-9A-Z]+)-([0-9A-Z]+)")


def _is_cron(text: str) -> bool:
    return _CRON.fullmatch(text) is not None and all(
        int(first) <= int(last) if last.isdecimal() else _DAYS.index(first) <= _DAYS.index(last)
        for first, last in _RANGE.findall(text)
    )


def _is_time_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return False
    return name[:1].isupper() and name != "Local"


_CRON_RULE: Final = ValueRule(
    cel=f"self.matches('^{_FORM}$') && "
    "self.findAll('[0-9]+-[0-9]+').all(it, int(it.split('-')[0]) <= int(it.split('-')[1])) && "
    "self.findAll('[A-Z]+-[A-Z]+').all(it, "
    f"'{_DAYS}'.indexOf(it.split('-')[0]) <= '{_DAYS}'.indexOf(it.split('-')[1]))",
    message="must be a cron expression of five fields: minute, hour, day of the month, month, and "
    "day of the week, such as 0 8 * * MON-FRI. Write numbers, names of days from SUN to SAT, *, "
    "lists, ascending ranges and steps",
    holds=_is_cron,
)

CronExpression = Annotated[str, Field(min_length=9, max_length=64), _CRON_RULE]


class ScheduledReplicas(Fields):
    start: CronExpression
    """Cron expression of the times at which the window begins, such as 0 8 * * MON-FRI. The
    replicas start earlier by the learned wait for a node and cold start, so that they are ready at
    this time."""
    end: CronExpression
    """Cron expression of the times at which the window ends, such as 0 18 * * *."""
    time_zone: Annotated[
        str,
        Field(max_length=64),
        ValueRule(
            cel="self.matches('^[A-Z][A-Za-z0-9_+/-]*$') && self != 'Local' && "
            "timestamp('2026-01-01T00:00:00Z').getHours(self) >= 0",
            message="must be the name of a time zone in the IANA database, such as Europe/Berlin "
            "or UTC",
            holds=_is_time_zone,
        ),
    ] = "UTC"
    """Name of the time zone in which start and end are written, such as Europe/Berlin. Default:
    UTC. When clocks go forward, a skipped time counts as the next moment. When they go back, a time
    that comes twice counts once."""
    min_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)]
    """Minimum number of replicas in the window. autoscaling.minReplicas applies if it is
    greater."""

    rules: ClassVar = (
        Rule(
            "end",
            cel="self.start != self.end",
            message="must differ from start, or the window would never end: change one of them",
            holds=lambda self: self.start != self.end,
        ),
    )

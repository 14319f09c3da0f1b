"""Foresees ramps of the load that usually come at the present time of day.

The history contains the highest load of every ten minutes of the last two weeks. A ramp is foreseen
if it came at this time on most of the last seven days and a week ago, or a week ago and two weeks
ago. A load without such a repetition has no forecast.
"""

import math
from dataclasses import dataclass, replace
from statistics import median_low

from llmservice_operator.api.calibration import HISTORY_SLOTS, SLOTS_OF_DAY

SLOT_SECONDS = 86_400.0 / SLOTS_OF_DAY

SLOTS_OF_WEEK = 7 * SLOTS_OF_DAY

MOST_DAYS = 5
"""Number of the last seven days on which a daily ramp must have come."""

RISE = 0.4
"""Doublings by which the load rises in a ramp, at least: by a third."""

CLEARLY = 4.0
"""Multiple of the usual change of the load by which a ramp rises, at least."""

RAMP_SLOTS = 2
"""Number of slots within which a ramp rises. It does not begin at the same minute every day."""

LEVELS_PER_DOUBLING = 16
LEVEL_UNIT_PERCENT = 10.0
UNKNOWN = 0
LARGEST = 255


@dataclass(frozen=True, slots=True)
class LoadHistory:
    """The highest load of each slot of SLOT_SECONDS, in percent of one replica."""

    levels: bytes = b""
    """Logarithmic levels of the slots that are over, oldest first. The last is that of the slot
    before `slot`."""
    slot: int = 0
    """The slot in progress, as a number of slots since 1970."""
    highest: float | None = None
    """Highest load in the slot in progress. None while it is unknown."""

    def add(self, at: float, percent: float) -> "LoadHistory":
        """Add a load at a time in seconds since 1970."""
        current = self.until(at)
        highest = percent if current.highest is None else max(current.highest, percent)
        return replace(current, highest=highest)

    def until(self, at: float) -> "LoadHistory":
        """Return the history at a later time. Slots without a load are unknown.

        A history that ends more than a day later is dropped, because its time was wrong.
        """
        slot = math.floor(at / SLOT_SECONDS)
        if self.slot - slot > SLOTS_OF_DAY:
            return LoadHistory(slot=slot)
        if slot <= self.slot:
            return self
        missed = min(slot - self.slot - 1, HISTORY_SLOTS)
        levels = self.levels + bytes([_level(self.highest)]) + bytes([UNKNOWN]) * missed
        return LoadHistory(levels[-HISTORY_SLOTS:], slot)

    def foreseen(self, at: float, lead_seconds: float, least_percent: float) -> float:
        """Return the load in percent for which replicas must be started now. 0 without a ramp.

        Replicas serve `lead_seconds` after their start. A ramp rises by at least `least_percent`,
        and by clearly more than the load usually changes within RAMP_SLOTS.
        """
        first = math.floor(at / SLOT_SECONDS)
        last = math.floor((at + lead_seconds) / SLOT_SECONDS)

        def usual(rise: float) -> float:
            return max(self._usual(slot, least_percent, rise) for slot in range(first, last + 1))

        # The usual change is looked up only if a ramp is probable.
        return usual(max(RISE, CLEARLY * self._usual_change())) if usual(RISE) > 0 else 0.0

    def _usual_change(self) -> float:
        """Return the median change of the load within RAMP_SLOTS, in doublings."""
        pairs = zip(self.levels, self.levels[RAMP_SLOTS:], strict=False)
        changes = [abs(b - a) for a, b in pairs if UNKNOWN not in (a, b)]
        return median_low(changes) / LEVELS_PER_DOUBLING if changes else 0.0

    def _usual(self, slot: int, least_percent: float, rise: float) -> float:
        """Return the height that the ramp at this time of day usually reaches."""
        days = [self._ramp(slot - day * SLOTS_OF_DAY, least_percent, rise) for day in range(1, 8)]
        week_ago = days[-1]
        daily = sorted(days, reverse=True)[MOST_DAYS - 1]
        weekly = self._ramp(slot - 2 * SLOTS_OF_WEEK, least_percent, rise)
        return min(week_ago, max(daily, weekly))

    def _ramp(self, slot: int, least_percent: float, rise: float) -> float:
        """Return the load at the end of a ramp in this slot. 0 without a ramp."""
        before, after = self._level_at(slot - RAMP_SLOTS), self._level_at(slot)
        if UNKNOWN in (before, after) or after - before < LEVELS_PER_DOUBLING * rise:
            return 0.0
        reached = _percent(after)
        return reached if reached - _percent(before) >= least_percent else 0.0

    def _level_at(self, slot: int) -> int:
        index = len(self.levels) - self.slot + slot
        return self.levels[index] if 0 <= index < len(self.levels) else UNKNOWN


def _percent(level: int) -> float:
    return LEVEL_UNIT_PERCENT * (math.pow(2, (level - 1) / LEVELS_PER_DOUBLING) - 1)


def _level(percent: float | None) -> int:
    if percent is None:
        return UNKNOWN
    doublings = math.log2(1 + max(percent, 0.0) / LEVEL_UNIT_PERCENT)
    return min(1 + math.floor(LEVELS_PER_DOUBLING * doublings), LARGEST)

"""Foresees ramps of the load that usually come at the present time of day.

The history contains the highest load of every ten minutes of the last two weeks. A ramp is foreseen
if it came at this time on most of the last seven days and a week ago, or a week ago and two weeks
ago, as most other ramps of that day did. A load without such a repetition has no forecast.
"""

import math
from dataclasses import dataclass, replace
from statistics import median_low

from llmservice_operator.api.calibration import HISTORY_SLOTS, SLOTS_OF_DAY

SLOT_SECONDS = 86_400.0 / SLOTS_OF_DAY

SLOTS_OF_WEEK = 7 * SLOTS_OF_DAY

MOST_DAYS = 5
"""Number of the last seven days on which a daily ramp must have come."""

SOME_DAYS = 2
"""Number of the last seven days on which a ramp must have come a slot earlier than usual, so that
replicas are started a slot earlier."""

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
        usual = self._usual_in(slot, least_percent, rise)
        # The time of a ramp varies by minutes, also across the end of a slot.
        late = self._usual_in(slot + 1, least_percent, rise)
        early = self._on_days(slot, least_percent, rise)[SOME_DAYS - 1] if late > 0 else 0.0
        return max(usual, min(late, early))

    def _usual_in(self, slot: int, least_percent: float, rise: float) -> float:
        """Return the height of the ramp that usually comes in this very slot."""
        week_ago = self._ramp(slot - SLOTS_OF_WEEK, least_percent, rise)
        if week_ago == 0:
            return 0.0
        height = self._on_days(slot, least_percent, rise)[MOST_DAYS - 1]
        if self._is_weekly(slot, least_percent, rise):
            height = max(height, self._ramp(slot - 2 * SLOTS_OF_WEEK, least_percent, rise))
        return min(week_ago, height)

    def _on_days(self, slot: int, least_percent: float, rise: float) -> list[float]:
        """Return the heights of the ramps at this time of the last seven days, greatest first."""
        days = (self._ramp(slot - day * SLOTS_OF_DAY, least_percent, rise) for day in range(1, 8))
        return sorted(days, reverse=True)

    def _is_weekly(self, slot: int, least_percent: float, rise: float) -> bool:
        """Return whether most ramps of the day a week ago also came two weeks ago, up to a slot
        earlier or later.

        Of ramps at random times, one alone often has a counterpart.
        """
        half = SLOTS_OF_DAY // 2
        ramps = [
            each
            for each in range(slot - half, slot + half)
            if self._ramp(each - SLOTS_OF_WEEK, least_percent, rise) > 0
        ]
        again = [
            each
            for each in ramps
            if any(
                self._ramp(near - 2 * SLOTS_OF_WEEK, least_percent, rise) > 0
                for near in (each - 1, each, each + 1)
            )
        ]
        return 2 * len(again) > len(ramps)

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

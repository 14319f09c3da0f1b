"""Compares the recent work of the owners of API keys."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from llmservice_operator.routing.ratios import FadingRate

SHARE_SECONDS: Final = 30.0
"""Time in seconds over which work fades."""

MOST_SHARE: Final = 1.5
"""Work of a key, divided by the mean of all active keys, above which it has more than its share."""

LEAST_SHARE: Final = 0.01
"""Work of an active key, as a share of that of the key with which it is compared."""

MOST_KEYS: Final = 1000
"""Maximum number of keys whose work is remembered. The least recently used one is forgotten."""


@dataclass
class Shares:
    """The recent work of each key, in seconds of an engine."""

    _of: OrderedDict[str, FadingRate] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._of)

    def add(self, key: str, seconds: float, now: float) -> None:
        """Add work of a key."""
        self._of.setdefault(key, FadingRate(SHARE_SECONDS)).add(seconds, now)
        self._of.move_to_end(key)
        if len(self._of) > MOST_KEYS:
            self._of.popitem(last=False)

    def work(self, key: str, now: float) -> float:
        """Return the recent work of a key in seconds."""
        known = self._of.get(key)
        return 0.0 if known is None else known.evidence(now).amount

    def is_exceeded(self, key: str, now: float) -> bool:
        """Return whether a key has had much more work than the mean of all active keys."""
        mine = self.work(key, now)
        works = [self.work(each, now) for each in self._of]
        active = [each for each in works if each >= LEAST_SHARE * mine]
        return mine > MOST_SHARE * sum(active) / max(len(active), 1)

"""Keeps the operator from writing one object repeatedly without end.

A pass that finds a difference writes, and then compares again. That ends only if the write lasts.
It does not last if an admission webhook rewrites the object, or if another client changes it back.
The guard remembers the last write of each object, and distinguishes three cases:

- The answer to a write already differed from the manifest. The same manifest will get the same
  answer, so the object cannot become more equal. It is sent again after some minutes, in case the
  webhook is gone.
- A field differs again after several equal writes. The object is left alone for a time that grows
  with each further write.
- Many different fields differ, one after another. A rate limits the writes of one object.

The module knows nothing of Kubernetes, and takes the time as an argument.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from llmservice_operator.desired.comparison import Difference

EQUAL_WRITES: Final = 5
"""Writes of the same field with the same value before the object is left alone for the first time.
Some are necessary, because the writes of two clients may overlap once or twice."""
LONGEST_PAUSE_SECONDS: Final = 300.0
FADE_SECONDS: Final = 10.0
"""Time in seconds after which the count falls by one write, as long as there is no contest."""
FORGET_AFTER_SECONDS: Final = 60.0
"""A contest is over after this many seconds, plus twice the last pause, without a write."""
WRITE_BURST: Final = 200
"""Writes of one object at once. An object has fewer fields, so each may be restored once."""
WRITES_PER_SECOND: Final = 0.45
"""Rate of the writes of one object after the burst. A workload has two names here, because its
replicas are written apart from the rest of it."""
WHOLE_OBJECT: Final = Difference(("f:metadata",), None, None)
"""Difference of an object that is missing, or that exists and must not."""

Name = tuple[Hashable, Hashable]
"""Identity of a written object: the identity of its service, and that of the object within the
service."""


@dataclass(frozen=True)
class _Field:
    """How often a field was written with the same value."""

    count: int
    at: float
    """Time of the last of these writes."""

    @property
    def pause_seconds(self) -> float:
        """Return the time after the last write during which the field is not restored."""
        over = self.count - EQUAL_WRITES
        return 0.0 if over < 0 else min(2.0 ** min(over, 16), LONGEST_PAUSE_SECONDS)

    def faded(self, now: float) -> int:
        """Return the count at `now`: old writes no longer count."""
        quiet = now - self.at
        if self.pause_seconds:
            return 0 if quiet > FORGET_AFTER_SECONDS + 2 * self.pause_seconds else self.count
        return max(0, self.count - int(quiet / FADE_SECONDS))


@dataclass
class _Record:
    """Record of the writes of one object."""

    digest: bytes = b""
    """Digest of the manifest that was written last."""
    rewritten: frozenset[tuple[str, str]] = frozenset()
    """Path and live value of each field in which the answer differed from that manifest."""
    fields: dict[str, _Field] = field(default_factory=dict)
    """The fields that caused the last write, by path."""
    written_at: float = 0.0
    tokens: float = float(WRITE_BURST)
    filled_at: float = 0.0

    def seconds_left(self, paths: Iterable[str], now: float) -> float:
        """Return the time for which the object is left, if it differs in these fields."""
        # A field that differs for the first time is restored at once, whatever the others do.
        return min((self._left(path, now) for path in paths), default=0.0)

    def fill(self, now: float) -> None:
        refill = (now - self.filled_at) * WRITES_PER_SECOND
        self.tokens = min(float(WRITE_BURST), self.tokens + refill)
        self.filled_at = now

    def count(self, path: str, now: float) -> None:
        before = self.fields.get(path)
        self.fields[path] = _Field((before.faded(now) if before is not None else 0) + 1, now)

    def _left(self, path: str, now: float) -> float:
        found = self.fields.get(path)
        return 0.0 if found is None else found.at + found.pause_seconds - now


@dataclass(frozen=True)
class Pause:
    """Reason why an object is not written now."""

    seconds: float
    """Time until it is written again, if it differs then."""
    is_rewritten: bool
    """Whether the answer to the last write already differed in the same way."""


class ConvergenceGuard:
    def __init__(self) -> None:
        self._records: dict[Hashable, dict[Hashable, _Record]] = {}

    def forget(self, service: Hashable) -> None:
        """Drop the records of a service that is gone."""
        self._records.pop(service, None)

    def pause(
        self, name: Name, manifest: Mapping[str, Any], differences: Iterable[Difference], now: float
    ) -> Pause | None:
        """Return for how long the object must not be written; None if it may be written now."""
        record = self._record(name)
        if record is None:
            return None
        record.fill(now)
        found = list(differences)
        if record.digest == _digest(manifest):
            left = record.written_at + LONGEST_PAUSE_SECONDS - now
            if record.rewritten and _values(found) <= record.rewritten and left > 0:
                return Pause(left, is_rewritten=True)
            left = record.seconds_left((each.path for each in found), now)
            if left > 0:
                return Pause(left, is_rewritten=False)
        if record.tokens < 1:
            return Pause((1 - record.tokens) / WRITES_PER_SECOND, is_rewritten=False)
        return None

    def wrote(
        self,
        name: Name,
        manifest: Mapping[str, Any],
        before: Iterable[Difference],
        after: Iterable[Difference],
        now: float,
    ) -> None:
        """Record a write, the differences that caused it, and those that its answer still had."""
        record = self._made(name, now)
        record.fill(now)
        digest = _digest(manifest)
        if digest != record.digest:
            record.digest, record.fields = digest, {}
        for path in {each.path for each in before}:
            record.count(path, now)
        record.rewritten = _values(after)
        record.written_at = now
        record.tokens -= 1

    def was_refused(self, name: Name, now: float) -> None:
        """Note a write that the API server refused. Nothing changed, but it was a request."""
        record = self._made(name, now)
        record.fill(now)
        record.tokens -= 1

    def _made(self, name: Name, now: float) -> _Record:
        service, object_ = name
        records = self._records.setdefault(service, {})
        return records.setdefault(object_, _Record(filled_at=now))

    def _record(self, name: Name) -> _Record | None:
        service, object_ = name
        return self._records.get(service, {}).get(object_)


def _values(differences: Iterable[Difference]) -> frozenset[tuple[str, str]]:
    return frozenset((each.path, json.dumps(each.live, sort_keys=True)) for each in differences)


def _digest(manifest: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).digest()

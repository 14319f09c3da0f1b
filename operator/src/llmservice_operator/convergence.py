"""Keeps the operator from writing the same object again and again without end.

A pass that finds a difference writes the object, and the next pass compares again. The writes end
only if the object stays as it was written. If an admission webhook rewrites the object, or another
client changes it back, every pass finds a difference. The guard remembers the last write of each
object, and distinguishes three cases:

- The response to a write already differs from the manifest, because a webhook rewrites the object.
  The same manifest would get the same response. It is sent again after some minutes, because the
  webhook may have been removed by then.
- A field differs again after several equal writes, because another client changes it back. The
  object is then not written for a time that grows with each further write.
- Different fields differ, one after another. A rate limit applies to the writes of each object.

The module does not access Kubernetes. Its callers pass the time, in seconds, as an argument.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from llmservice_operator.desired.comparison import Difference

EQUAL_WRITES: Final = 5
"""Number of writes of the same value to a field after which the guard first pauses the writes of
the object. One write is not enough, because the writes of two clients may overlap once or twice."""
LONGEST_PAUSE_SECONDS: Final = 300.0
FADE_SECONDS: Final = 10.0
"""Time in seconds after which the count of a field's writes decreases by one, while the field is
not contested."""
FORGET_AFTER_SECONDS: Final = 60.0
"""A contest with another client over a field is over when this many seconds, plus twice the last
pause, have passed without a write."""
WRITE_BURST: Final = 200
"""Number of writes of one object before the rate limit applies. An object has fewer than 200
fields, so every field may be restored once."""
WRITES_PER_SECOND: Final = 0.45
"""Maximum rate of the writes of one object after the burst, in writes per second. A workload counts
as two objects, because its number of replicas is written separately."""
WHOLE_OBJECT: Final = Difference(("f:metadata",), None, None)
"""Difference of an object that must be created or deleted."""

Name = tuple[Hashable, Hashable]
"""Identity of a written object: the identity of its service, and the identity of the object within
the service."""


@dataclass(frozen=True)
class _Field:
    """Count of the writes of the same value to a field."""

    count: int
    at: float
    """Time of the last of these writes, in seconds."""

    @property
    def pause_seconds(self) -> float:
        """Time in seconds after the last write during which the field is not restored."""
        over = self.count - EQUAL_WRITES
        return 0.0 if over < 0 else min(2.0 ** min(over, 16), LONGEST_PAUSE_SECONDS)

    def faded(self, now: float) -> int:
        """Return the count at `now`, without the writes that are too old."""
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
    """Path and live value of each field in which the response to the last write differed from the
    manifest."""
    fields: dict[str, _Field] = field(default_factory=dict)
    """Path of each field that caused writes of the last manifest -> number of these writes."""
    settled_version: str | None = None
    """Resource version of the object that contains everything in the last manifest."""
    written_at: float = 0.0
    tokens: float = float(WRITE_BURST)
    filled_at: float = 0.0

    def seconds_left(self, paths: Iterable[str], now: float) -> float:
        """Return the seconds until an object that differs in these fields may be written."""
        # A field that differs for the first time has no pause, even if others are contested.
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
    """Pause in the writes of an object."""

    seconds: float
    """Time in seconds until the object is written again, if it still differs then."""
    is_rewritten: bool
    """Whether the response to the last write already contained the differing values."""


class ConvergenceGuard:
    def __init__(self) -> None:
        self._records: dict[Hashable, dict[Hashable, _Record]] = {}

    def forget(self, service: Hashable) -> None:
        """Drop the records of a service that no longer exists."""
        self._records.pop(service, None)

    def pause(
        self, name: Name, manifest: Mapping[str, Any], differences: Iterable[Difference], now: float
    ) -> Pause | None:
        """Return the pause before the object may be written; None if it may be written now."""
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
        version: str | None = None,
    ) -> None:
        """Record a write, the differences that caused it, those that remain in its response, and
        the resource version of the response.
        """
        record = self._made(name, now)
        record.fill(now)
        digest = _digest(manifest)
        if digest != record.digest:
            record.digest, record.fields = digest, {}
        for path in {each.path for each in before}:
            record.count(path, now)
        record.rewritten = _values(after)
        record.settled_version = None if record.rewritten else version
        record.written_at = now
        record.tokens -= 1

    def settle(self, name: Name, manifest: Mapping[str, Any], version: str) -> None:
        """Record that this version of an object, which was written before, equals its manifest."""
        record = self._record(name)
        if record is not None and record.digest == _digest(manifest):
            record.settled_version = version

    def is_settled(self, name: Name, manifest: Mapping[str, Any], version: str) -> bool:
        """Return whether this version of an object is known to equal its manifest.

        The comparison of a whole object takes several times the CPU time of this one.
        """
        record = self._record(name)
        return (
            record is not None
            and record.settled_version == version
            and record.digest == _digest(manifest)
        )

    def was_refused(self, name: Name, now: float) -> None:
        """Record a write that the API server refused. It counts against the rate limit."""
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

"""The capacity factor κ: correction of the modelled capacity from measured SLO misses."""

from dataclasses import dataclass, replace

PERIOD_SECONDS = 15.0
MINUTE_SECONDS = 60.0
"""Time span in seconds that an evidence covers."""
FEWEST_REQUESTS = 20
"""Minimum number of judged requests in the last minute. With fewer, the factor stays the same."""

FULL = 0.90
"""Utilization at or above which the model expects misses. Such misses are no evidence."""
BUSY = 0.70
"""Utilization above which few misses prove spare capacity."""
FEW_MISSES = 0.5
"""Share of the expected misses. Fewer misses than this show that the capacity is larger than
modelled."""
CLEARLY_MET = 0.4
"""Share of the allowed misses. While busy replicas cause fewer misses than this, a factor below 1
rises again."""
FEWEST_EXPECTED = 2.0
"""Minimum number of expected misses, in a minute or since the last proof. If fewer are expected,
their absence does not prove spare capacity."""

FASTEST_FALL = 0.05
RISE = 1.01
LOWEST, HIGHEST = 0.35, 4.0
"""Bounds of the factor, far beyond what evidence usually gives. It may exceed 1, because replicas
that share their load well sustain more than each would alone, and because a formula may be
pessimistic. Each rise needs new evidence at the higher load that the earlier rise caused."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Misses of the requests that finished in the last minute, and the load that caused them.

    Misses are shares of the judged requests.
    """

    judged: float
    missed: float
    allowed: float
    """Share of the requests that may miss according to the objective."""
    unrepairable: float
    """Share of the requests that, according to the model, miss even on an idle replica."""
    expected: float
    """Share of the requests that, according to the model, miss on replicas with this load."""
    utilization: float
    """Mean effective utilization of the replicas, from 0 (idle) to 1 (full) and above."""
    has_backlog: bool
    memory_seconds: float
    """Time in seconds after an overload during which `missed` may still count requests that the
    overload delayed."""

    def excess(self, missed: float) -> float:
        """Return the share of misses among the requests that an idle replica serves in time."""
        return max(0.0, (missed - self.unrepairable) / max(1 - self.unrepairable, 1e-9))


@dataclass(frozen=True, slots=True)
class CapacityFactor:
    """The factor κ, and the time of its last change."""

    value: float = 1.0
    moved_at: float = -1e18
    overloaded_at: float = -1e18
    """Time when the replicas were last full or had a backlog. Misses at such times are expected."""
    watched_at: float = -1e18
    """Time of the last evidence of busy replicas."""
    expected: float = 0.0
    """Misses that the model expected of busy replicas since the last proof."""
    missed: float = 0.0
    """Misses that happened meanwhile. Both leave out those that more replicas do not prevent."""

    def corrected(self, now: float, seen: Evidence) -> "CapacityFactor":
        """Return κ corrected by the evidence of the last minute."""
        if seen.has_backlog or seen.utilization >= FULL:
            return replace(self, overloaded_at=now)
        if now < self.moved_at + PERIOD_SECONDS - 1e-6 or seen.judged < FEWEST_REQUESTS:
            return self
        if now < self.overloaded_at + seen.memory_seconds:
            return self
        excess, expected = seen.excess(seen.missed), seen.excess(seen.expected)
        # The model expects more than the allowed misses where more replicas hardly help.
        allowed = max(seen.allowed, expected)
        if excess > allowed:
            fall = min(FASTEST_FALL, 0.5 * (excess - allowed))
            return replace(self, value=max(LOWEST, self.value * (1 - fall)), moved_at=now)
        if seen.utilization <= BUSY:
            return self
        if expected * seen.judged >= FEWEST_EXPECTED and excess < FEW_MISSES * expected:
            return replace(self, value=min(HIGHEST, self.value * RISE), moved_at=now)
        if self.value < 1 and excess < CLEARLY_MET * seen.allowed:
            return replace(self, value=min(1.0, self.value * RISE), moved_at=now)
        return self._watched(now, expected * seen.judged, excess * seen.judged)

    def _watched(self, now: float, expected: float, missed: float) -> "CapacityFactor":
        """Add the misses of the last minute to those of the minutes before.

        A model may expect only a few misses an hour, and still be pessimistic.
        """
        share = min(max(now - self.watched_at, 0.0), MINUTE_SECONDS) / MINUTE_SECONDS
        expected, missed = self.expected + share * expected, self.missed + share * missed
        if expected < FEWEST_EXPECTED:
            return replace(self, watched_at=now, expected=expected, missed=missed)
        is_proof = missed < FEW_MISSES * expected
        return replace(
            self,
            value=min(HIGHEST, self.value * RISE) if is_proof else self.value,
            moved_at=now if is_proof else self.moved_at,
            watched_at=now,
            expected=0.0,
            missed=0.0,
        )

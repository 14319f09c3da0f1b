"""The capacity factor κ: what SLO misses say about a capacity that the model got wrong."""

from dataclasses import dataclass, replace

PERIOD_SECONDS = 15.0
FEWEST_REQUESTS = 20
"""Finished requests in a minute below which a share of misses means nothing."""

FULL = 0.90
"""Utilization from which misses are expected."""
BUSY = 0.70
"""Utilization below which few misses prove nothing."""
FEW_MISSES = 0.5
"""Share of the expected misses below which the capacity is larger than believed."""
CLEARLY_MET = 0.4
"""Share of the allowed misses below which a lowered capacity recovers."""
FEWEST_EXPECTED = 2.0
"""Expected misses of a minute below which their absence proves nothing."""

FASTEST_FALL = 0.05
RISE = 1.01
LOWEST, HIGHEST = 0.35, 1.25
"""Replicas that share their load well sustain more than each would alone; never much more."""


@dataclass(frozen=True, slots=True)
class CapacityFactor:
    """κ and when it may move next."""

    value: float = 1.0
    moved_at: float = -1e18
    overloaded_at: float = -1e18
    """When the replicas were last full or had a backlog: misses from then say nothing."""

    def observe(
        self,
        *,
        now: float,
        judged: float,
        missed: float,
        allowed: float,
        unrepairable: float,
        expected: float,
        utilization: float,
        has_backlog: bool,
        memory_seconds: float,
    ) -> "CapacityFactor":
        """κ after a look at the requests that finished in the last minute.

        Shares of the judged requests: `missed` it did; `unrepairable` without any load;
        `expected` at this utilization, by the model. `memory_seconds` is how long a finished
        request remembers an overload. `utilization` is the mean of the replicas, 1 for full.
        """
        if has_backlog or utilization >= FULL:
            return replace(self, overloaded_at=now)
        if now < self.moved_at + PERIOD_SECONDS - 1e-6 or judged < FEWEST_REQUESTS:
            return self
        if now < self.overloaded_at + memory_seconds:
            return self
        excess = max(0.0, (missed - unrepairable) / max(1 - unrepairable, 1e-9))
        if excess > allowed:
            fall = min(FASTEST_FALL, 0.5 * (excess - allowed))
            return replace(self, value=max(LOWEST, self.value * (1 - fall)), moved_at=now)
        is_proof = utilization > BUSY and expected * judged >= FEWEST_EXPECTED
        if is_proof and missed < FEW_MISSES * expected:
            return replace(self, value=min(HIGHEST, self.value * RISE), moved_at=now)
        if self.value < 1 and utilization > BUSY and excess < CLEARLY_MET * allowed:
            return replace(self, value=min(1.0, self.value * RISE), moved_at=now)
        return self

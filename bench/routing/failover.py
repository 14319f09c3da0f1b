"""Kills the picker that chooses, under load, and brings it back.

Run `PYTHONPATH=bench:operator:operator/tests:testing python -m routing.failover`. Two real Envoys
ask the same two pickers, on loopback. The fake replicas have prefix caches, and answer after a
fixed time.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from router_support.conversations import Conversations, Served, conversations, saved_percent

WARM, SERVED, WINDOW = 600, 500, 300
"""Number of requests before the picker is killed, after that, and for each saved share."""
CLIENTS = 8
POINTS = 3.0
"""Percentage points that the saved share may lose."""


@dataclass(frozen=True)
class Failover:
    """What happened to the requests."""

    fallen_back: int
    """Number of requests for which no picker has chosen the replica."""
    failed: int
    gap_ms: float
    """Longest time from a client to a replica after the picker was killed, in milliseconds."""
    usual_ms: float
    """Median of this time before."""
    saved: tuple[float, float, float]
    """Saved percentage of the prompts: before, one second after the kill, and after the return."""

    @property
    def lost_points(self) -> float:
        before, *later = self.saved
        return before - min(later)

    def line(self) -> str:
        """Return the printed line of the gate."""
        bad = self.fallen_back + self.failed
        verdict = "PASS" if bad == 0 and self.lost_points <= POINTS else "FAIL"
        before, after, back = self.saved
        return (
            f"GATE failover {bad} <=0 {verdict} ({self.fallen_back} fell back and {self.failed} "
            f"failed of {SERVED}; gap {self.gap_ms:.0f} ms, usually {self.usual_ms:.0f} ms; saved "
            f"{before:.1f} % before, {after:.1f} % a second later, {back:.1f} % after the return)"
        )


async def fail_over(service: Conversations) -> Failover:
    """Kill the picker under load, and start it again."""
    await service.serve(WARM)
    before = await service.serve(WINDOW)
    begun = len(service.served)
    service.kill_picker()
    await service.serve_for(1.0)
    after = await service.serve(WINDOW)
    await service.serve(max(0, begun + SERVED - len(service.served)))
    killed = service.served[begun : begun + SERVED]
    failed = len(service.failed)
    await service.picker_returns()
    back = await service.serve(WINDOW)
    return Failover(
        fallen_back=sum(not each.is_picked for each in killed),
        failed=failed,
        gap_ms=1000 * max(_seconds(service, killed)),
        usual_ms=1000 * statistics.median(_seconds(service, before)),
        saved=(saved_percent(before), saved_percent(after), saved_percent(back)),
    )


def _seconds(service: Conversations, served: Sequence[Served]) -> list[float]:
    return [service.seconds_to_replica(each) for each in served]


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with conversations(Path(folder), CLIENTS) as service:
            print((await fail_over(service)).line())


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    asyncio.run(main())

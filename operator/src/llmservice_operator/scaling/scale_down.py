"""Computes the scale-down window. The highest demand in the window limits scale-down.

An idle replica costs GPU time. A replica that is removed too early costs a cold start, and the
requests that miss their SLO meanwhile. Waiting about as long as a cold start costs at most twice as
much as knowing the future (the ski-rental argument).
"""

import math
from dataclasses import dataclass

COLD_STARTS = 1.5
SHORTEST_SECONDS, LONGEST_SECONDS = 90.0, 600.0

WORTH_WRITING = 0.1
"""Relative change of the window above which the new one is written."""
SHORTER_AFTER_SECONDS = 300.0
"""Time in seconds for which a window stays before a shorter one is written."""

UNDONE_SECONDS = 900.0
"""Time in seconds after a scale-down within which a scale-up undoes it."""
REMEMBERED_SECONDS = 3600.0
"""Time in seconds for which an undone scale-down lengthens the window."""
UNDONE_FACTOR = 8.0
LONGEST_UNDONE_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class UndoneScaleDowns:
    """Scale-downs that were undone soon although the load was constant.

    The noise of a load close to a whole number of replicas removes and adds the same replica again
    and again. Each time costs a cold start, so the window grows until the replica stays. A load
    that changes needs another number of replicas, and a longer window would only cost more.
    """

    replicas: int = 0
    fell_at: float = -math.inf
    """Time in seconds of the last scale-down that nothing undid."""
    most_wanted: float = 0.0
    """Highest number of replicas that the load wanted after that. A rollout also adds replicas, but
    no load wants them."""
    undone_at: tuple[float, ...] = ()
    """Times in seconds of the scale-ups of the last REMEMBERED_SECONDS, oldest first."""

    def add(
        self, now: float, replicas: int, wanted: float, *, is_steady: bool
    ) -> "UndoneScaleDowns":
        """Return the scale-downs after the present and the wanted number of replicas was seen.

        `is_steady` says whether the load is constant but for its noise.
        """
        undone_at = tuple(at for at in self.undone_at if at > now - REMEMBERED_SECONDS)
        if replicas < self.replicas:
            return UndoneScaleDowns(replicas, now, wanted, undone_at)
        fell_at, most_wanted = self.fell_at, max(self.most_wanted, wanted)
        if replicas > self.replicas and most_wanted > self.replicas:
            if is_steady and now <= fell_at + UNDONE_SECONDS:
                undone_at = (*undone_at, now)
            fell_at = -math.inf
        return UndoneScaleDowns(replicas, fell_at, most_wanted, undone_at)

    def lengthened(self, window_seconds: float) -> float:
        """Return the window after the scale-downs that were undone."""
        factor = UNDONE_FACTOR ** len(self.undone_at)
        return max(window_seconds, min(window_seconds * factor, LONGEST_UNDONE_SECONDS))


NONE_UNDONE = UndoneScaleDowns()


def scale_down_window(
    cold_start_seconds: float, is_bursty: bool, undone: UndoneScaleDowns = NONE_UNDONE
) -> float:
    """Return the scale-down stabilization window of the HPA, in seconds."""
    if is_bursty:
        return LONGEST_SECONDS
    window = min(max(COLD_STARTS * cold_start_seconds, SHORTEST_SECONDS), LONGEST_SECONDS)
    return undone.lengthened(window)


def window_to_write(present: float, learned: float, age_seconds: float) -> float:
    """Return the window of an HPA whose `present` window was written `age_seconds` ago.

    Few changes are written, to keep the load on the API server low. But a longer window is written
    at once, because it is to keep replicas that the present one removes within the next minutes.
    """
    if abs(learned - present) <= WORTH_WRITING * present:
        return present
    return learned if learned > present or age_seconds >= SHORTER_AFTER_SECONDS else present

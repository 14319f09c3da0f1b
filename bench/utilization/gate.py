"""Gives the verdict on the largest error of the utilization."""

from collections.abc import Sequence
from statistics import median

from utilization.experiment import Reading

LIMIT_PERCENT = 10.0


def line(found: Sequence[Reading]) -> str:
    """Return the line of the gate `egu_error`, in percent of the true load.

    The true capacity is known only within its interval, so every error has an interval, too. The
    verdict is PASS when all intervals are below the limit. It is FAIL when an interval is
    completely above the limit, or when there is no reading. Otherwise it is UNDECIDED.
    """
    if not found:
        return f"GATE egu_error missing {LIMIT_PERCENT:.0f} FAIL"
    worst = max(found, key=lambda reading: reading.error)
    low = max(reading.error_bounds[0] for reading in found)
    high = max(reading.error_bounds[1] for reading in found)
    verdict = "PASS" if high <= LIMIT_PERCENT else "FAIL" if low > LIMIT_PERCENT else "UNDECIDED"
    middle = median(reading.error for reading in found)
    return (
        f"GATE egu_error {worst.error:.1f} {LIMIT_PERCENT:.0f} {verdict}"
        f"  interval [{low:.1f}, {high:.1f}], median {middle:.1f}, "
        f"worst at {worst.load:.0f} % of {worst.model}, {worst.mix}"
    )


def own_line(found: Sequence[Reading]) -> str:
    """Return a line about the error of the utilization according to a step model that was learned
    from the same traffic.
    """
    errors = [reading.own_error for reading in found]
    return (
        f"learned from the same traffic it would be off by {max(errors):.1f} % at most, "
        f"{median(errors):.1f} % in the median"
    )

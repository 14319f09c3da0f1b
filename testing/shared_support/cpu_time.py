"""Reads the CPU time of processes."""

import time


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has taken so far, in seconds.

    Raises OSError if there is no such process.
    """
    # This is how clock_getcpuclockid(3) computes the id of the clock.
    return float(time.clock_gettime((~pid << 3) | 2))

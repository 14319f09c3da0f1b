"""Waits for a condition with a timeout, and explains a failure."""

import time
from collections.abc import Callable

from localkube.cluster import Cluster
from localkube.errors import LocalkubeError

_PAUSE_SECONDS = 0.25


def until(
    ready: Callable[[], bool], *, cluster: Cluster, daemon: str, what: str, seconds: float
) -> None:
    """Wait until `ready` returns true.

    Raises LocalkubeError after the given seconds, or once `daemon` has ended. The message shows the
    end of the daemon's log.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        died = cluster.daemons().get(daemon) is None
        if died or time.monotonic() > deadline:
            why = f"{daemon} has ended" if died else f"not within {seconds:.0f} s"
            raise LocalkubeError(
                f"{what}: {why}. The end of {cluster.logs / daemon}.log:\n"
                f"{cluster.log_tail(daemon)}"
            )
        time.sleep(_PAUSE_SECONDS)

"""Decides for the probes whether the process is ready, and whether it is alive."""

from collections.abc import Callable

STUCK_SECONDS = 120.0
"""Age in seconds above which a pass counts as stuck. Passes are cancelled after 60 s. A pass of
this age has ignored its cancellation, and only a restart helps. For the metrics server, the
limit applies to the time since the end of the last round."""


class Health:
    """Keeps the reasons why the process is not ready or hindered, as texts for the probes.

    A process that is not ready is starting or exiting, or its view of the cluster may be outdated.
    A hindered process works, except for the part that the reason names. It stays ready, so that one
    namespace or one kind of object cannot stop a rollout of the process.
    """

    def __init__(self, longest_running_seconds: Callable[[], float]) -> None:
        self._longest_running_seconds = longest_running_seconds
        self._not_ready: dict[str, str] = {"watches": "the watches have not started yet"}
        self._hindered: dict[str, str] = {}

    def not_ready(self, part: str, reason: str) -> None:
        self._not_ready[part] = reason

    def ready(self, part: str) -> None:
        self._not_ready.pop(part, None)

    def report(self, part: str, reason: str | None) -> None:
        """Set the reason why a part is not ready; None when it is ready."""
        if reason is None:
            self.ready(part)
        else:
            self.not_ready(part, reason)

    def report_hindrance(self, part: str, reason: str | None) -> None:
        """Set the reason why the part does not do all of its work; None if it does."""
        if reason is None:
            self._hindered.pop(part, None)
        else:
            self._hindered[part] = reason

    def why_hindered(self) -> list[str]:
        return sorted(self._hindered.values())

    def why_not_ready(self) -> list[str]:
        return sorted(self._not_ready.values())

    def why_not_alive(self) -> list[str]:
        """Return the reason why the process is not alive, or an empty list.

        A blocked event loop needs no reason, because it cannot respond to the probe at all.
        """
        age = self._longest_running_seconds()
        return [f"a pass has been running for {age:.0f} s"] if age > STUCK_SECONDS else []

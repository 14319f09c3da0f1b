"""Figures that are measured with one number of services."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Cell:
    """Figures of one number of services. None marks a figure that was not measured."""

    services: int
    plain_create_seconds: float | None = None
    """Time in seconds in which a bare client applies the children of all services."""
    plain_delete_seconds: float | None = None
    """Time in seconds to delete the services and their children while no operator runs."""
    create_seconds: float | None = None
    """Time in seconds from the first creation of a service until the last child exists."""
    converge_seconds: float | None = None
    """Time in seconds from the first creation until every service reports a ready replica."""
    cpu_ms_per_service: float | None = None
    """CPU time of the operator in milliseconds per service, from the first creation until it is
    idle again."""
    cpu_ms_per_pass: float | None = None
    """CPU time of the operator in milliseconds per pass, in the same span."""
    restart_seconds: float | None = None
    """Time in seconds from the start of the process until it has processed every service."""
    restart_writes: float | None = None
    rss_mib: float | None = None
    """Highest resident memory in MiB of any operator process."""
    idle_requests_per_second: float | None = None
    """Requests of the operator per second while nothing changes, without those of leader election.
    """
    event_ms: dict[str, Sequence[float]] = field(default_factory=dict)
    """Mapping from the conditions of a measurement, such as "webhook hangs", to its times in
    milliseconds. A time is that from the change of a service to the change of its child."""
    delete_seconds: float | None = None
    """Time in seconds to delete the services and their children while the operator runs."""

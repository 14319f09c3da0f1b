"""Tells users of requests that ended two replicas, by one Event for each request.

Router pods have no rights in the cluster, so the metrics server writes the Events about the
requests in their reports.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from llmservice_operator.api import Manifest
from llmservice_operator.api.router_messages import RouterReport
from llmservice_operator.cluster import Key

logger = logging.getLogger(__name__)

REQUEST_REFUSED: Final = "RequestRefused"
"""Reason of the Event."""

MOST_KNOWN: Final = 10_000
"""Maximum number of requests that are remembered. The oldest is forgotten first."""

SHOWN_DIGITS: Final = 16
"""Number of digits of a digest in an Event. The router's log contains all of them."""

Record = Callable[[Manifest, str, str, str], Awaitable[None]]
"""Records an Event about an object, with its type, reason and message."""


class RefusedRequests:
    """The refused requests that are known. Only the learner of a service writes its Events."""

    def __init__(
        self,
        service_of: Callable[[Key], Manifest | None],
        record: Record,
        leads: Callable[[Key], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service_of = service_of
        self._record = record
        self._leads = leads
        self._clock = clock
        self._known_until: dict[tuple[Key, str], float] = {}
        """Time until which a router refuses a request."""

    async def note(self, key: Key, report: RouterReport) -> None:
        """Process the report of a router pod of a service."""
        now = self._clock()
        for request in report.refused_requests:
            known = self._known_until.pop((key, request.digest), now)
            self._known_until[key, request.digest] = max(known, now + request.seconds_left)
            while len(self._known_until) > MOST_KNOWN:
                del self._known_until[next(iter(self._known_until))]
            service = self._service_of(key)
            # The follower only remembers the request, so that it does not repeat the Event of the
            # learner when it takes over.
            if known > now or service is None or not self._leads(key):
                continue
            message = (
                "A request ended two replicas, so the router refuses it for 10 minutes. Its digest "
                f"in the router's log begins with {request.digest[:SHOWN_DIGITS]}. Look into the "
                "logs of the replicas that ended for the cause."
            )
            await self._record(service, "Warning", REQUEST_REFUSED, message)

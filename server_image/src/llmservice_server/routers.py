"""Reads the headers by which a router in front of the replicas describes a request.

A router holds a request while every replica is busy, and tries a second replica if the first one
refuses. The server measures TTFT from the moment when the router received the request. A request
counts only once, even if several replicas refuse it.

These headers change the metrics of the SLO and of the demand, and so the number of GPUs. A client
must not set them. The server believes them only from an address that has read /autoscale on the
management port in the last seconds. A router reads this report every second. The NetworkPolicy
admits routers, metrics servers and monitoring to that port, but no client of the API. Unlike a
secret or a setting, this rule needs nothing in the pod, so switching a router on or off restarts no
replica. Where no NetworkPolicy is enforced, a client can read /autoscale too, and the server then
believes its headers. Behind a proxy that hides the address of the router, such as a sidecar, the
headers are ignored, and TTFT begins at the server.
"""

import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from starlette.types import Scope

from llmservice_server.metrics import ServerMetrics

HELD_HEADER = b"x-llm-router-held-ms"
"""Header with the time in milliseconds for which the router held the request."""

ATTEMPT_HEADER = b"x-llm-router-attempt"
"""Header with the number of the attempt: 1, or 2 after another replica refused the request. A
router that makes no second attempt does not set the header."""

_HELD = re.compile(rb"[0-9]{1,7}")
_ATTEMPT = re.compile(rb"[1-9]")

_MOST_HELD_SECONDS = 3600.0
"""Maximum time in seconds that a router can have held a request."""

_KNOWN_SECONDS = 10.0
"""Time in seconds for which an address counts as a router's once it has read /autoscale. Within
this time, a router reads it several times."""

_MOST_ADDRESSES = 64
"""Maximum number of addresses that are kept. A service has two routers and two metrics servers."""


class Readers:
    """Addresses that read /autoscale. One thread calls `note`, and another one calls `knows`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}

    def note(self, address: str) -> None:
        """Record that an address reads /autoscale now."""
        self._last[address] = self._clock()
        if len(self._last) > _MOST_ADDRESSES:
            del self._last[min(self._last, key=self._last.__getitem__)]

    def knows(self, address: str) -> bool:
        """Return whether the address has read /autoscale within `_KNOWN_SECONDS`."""
        last = self._last.get(address)
        return last is not None and self._clock() - last < _KNOWN_SECONDS


@dataclass(frozen=True)
class RouterHeaders:
    """What a router says about a request."""

    held_seconds: float = 0.0
    """Time for which the router held the request."""
    will_retry: bool = False
    """Whether the router sends the request to another replica if this one refuses it."""


NO_ROUTER = RouterHeaders()
"""Headers of a request that came without a router."""

current_router_headers: ContextVar[RouterHeaders] = ContextVar(
    "current_router_headers", default=NO_ROUTER
)
"""Router headers of the current HTTP request."""


def read_router_headers(scope: Scope, readers: Readers, metrics: ServerMetrics) -> RouterHeaders:
    """Return the router headers of a request. Malformed headers, and those of an unknown sender,
    are only counted.
    """
    told = [header for header in scope["headers"] if header[0] in (HELD_HEADER, ATTEMPT_HEADER)]
    if not told:
        return NO_ROUTER
    client = scope.get("client")
    if client is None or not readers.knows(client[0]):
        metrics.router_headers_ignored.labels("unknown_sender").inc()
        return NO_ROUTER
    values = dict(told)
    held, attempt = values.get(HELD_HEADER, b"0"), values.get(ATTEMPT_HEADER, b"9")
    if len(values) < len(told) or not (_HELD.fullmatch(held) and _ATTEMPT.fullmatch(attempt)):
        metrics.router_headers_ignored.labels("malformed").inc()
        return NO_ROUTER
    return RouterHeaders(min(int(held) / 1000, _MOST_HELD_SECONDS), will_retry=attempt == b"1")

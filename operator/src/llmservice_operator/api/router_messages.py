"""The messages between the metrics servers and the router pods.

A metrics server sends the list of a service's replicas by `PUT :9090/replicas`, and the router pod
answers with its report. While the service has no replicas, the metrics server also waits for held
requests by `GET :9090/held?wait=SECONDS`, which gets the same answer. Both may have different
versions, so unknown fields are ignored.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, IPvAnyAddress

from llmservice_operator.api.fields import Fields

MOST_REPLICAS: Final = 1000
"""Largest number of replicas in a list."""

Name = Annotated[str, Field(min_length=1, max_length=253)]


class ListedReplica(Fields):
    """A replica whose pod has an address."""

    name: Name
    """Name of the pod that answers the replica's requests."""
    uid: Name
    """UID of this pod. A later pod of the same name or address has another one."""
    address: IPvAnyAddress
    """IP address of this pod."""
    is_ready: bool
    """Whether the replica is Ready and not being deleted. The router itself asks each replica
    whether it can take requests. A change of this value makes the router ask at once."""
    is_draining: bool
    """Whether the replica is being deleted, so that it must get no further requests."""


LONGEST_REFUSAL: Final = 1000
"""Largest length of the sentence with which requests are refused, in characters."""


class ReplicaList(Fields):
    """All replicas of a service that have an address. A list replaces the previous one."""

    namespace: Name
    service: Name
    """Name of the LLMService."""
    replicas: Annotated[tuple[ListedReplica, ...], Field(max_length=MOST_REPLICAS)]
    refusal: Annotated[str, Field(max_length=LONGEST_REFUSAL)] | None = None
    """Sentence with which the router refuses requests instead of holding them, because no replica
    will come. None while one may come."""


MOST_REFUSED: Final = 100
"""Largest number of refused requests in a report."""


class RefusedRequest(Fields):
    """A request that two replicas ended with, so that a router refuses it."""

    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the request's body and length."""
    seconds_left: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Time in seconds for which the router still refuses the request."""


MOST_HELD: Final = 1_000_000
"""Largest number of held requests in a report."""


MOST_COUNTED: Final = 2**53
"""Largest value of a counter in a report."""

Count = Annotated[int, Field(ge=0, le=MOST_COUNTED)]


class HoldCounts(Fields):
    """Counters of the requests that waited in a router pod, since its picker started.

    A request that is in none of the last three counters still waits, or its client has left.
    """

    started: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Start of the picker as Unix time in seconds. A different value means a different process,
    whose counters began at 0."""
    arrived: Count
    """Requests that began to wait."""
    released: Count
    """Requests that were sent to a replica, or to the pod's forwarder, which sends them again."""
    timed_out: Count
    """Requests that waited for the whole hold timeout."""
    refused: Count
    """Requests that could not wait, because too many others did. They are not in `arrived`."""


class RouterReport(Fields):
    """The report of a router pod."""

    refused_requests: Annotated[tuple[RefusedRequest, ...], Field(max_length=MOST_REFUSED)] = ()
    """The requests that were refused most recently."""
    held_requests: Annotated[int, Field(ge=0, le=MOST_HELD)] = 0
    """Number of requests that wait in this router pod for a replica."""
    hold_counts: HoldCounts | None = None
    """None if the router is older than this field, or while its picker does not answer."""
    can_be_watched: bool = False
    """Whether the router pod answers the question for its next held request. False from a router
    that is older than this question."""

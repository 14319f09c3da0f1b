"""The replicas of one LLMService, as a metrics server reports them to the router pods.

A metrics server sends the list by `PUT :9090/replicas`. Router pods and metrics servers may have
different versions, so unknown fields are ignored.
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


class ReplicaList(Fields):
    """All replicas of a service that have an address. A list replaces the previous one."""

    namespace: Name
    service: Name
    """Name of the LLMService."""
    replicas: Annotated[tuple[ListedReplica, ...], Field(max_length=MOST_REPLICAS)]

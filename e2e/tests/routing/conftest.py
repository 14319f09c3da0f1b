"""Fixtures of the tests of routers on a full cluster."""

from collections.abc import Callable, Iterator

import pytest

from e2e_support import Cluster
from impatient_clients import ImpatientClients
from routed import KEY, Routed


@pytest.fixture(scope="module")
def routed(cluster: Cluster, namespace: str) -> Callable[..., Routed]:
    """Return a function that creates a service with a router, and waits until it serves."""

    def create(name: str, replicas: int | None, **spec: object) -> Routed:
        service = Routed(cluster, namespace, name)
        service.apply(replicas, **spec)
        return service

    return create


@pytest.fixture(scope="module")
def service(routed: Callable[..., Routed]) -> Routed:
    """Return a service of two replicas with a router."""
    return routed("chat", replicas=2)


@pytest.fixture(scope="module")
def clients(service: Routed) -> Iterator[ImpatientClients]:
    """Clients that send requests during all tests of a module."""
    with ImpatientClients(service.url(), service.name, KEY) as clients:
        yield clients

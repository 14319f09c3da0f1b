"""Fixtures of the tests of routers on a full cluster."""

from collections.abc import Callable

import pytest

from e2e_support import Cluster
from routed import Routed


@pytest.fixture(scope="module")
def routed(cluster: Cluster, namespace: str) -> Callable[..., Routed]:
    """Return a function that creates a service with a router, and waits until it serves."""

    def create(name: str, replicas: int, **spec: object) -> Routed:
        service = Routed(cluster, namespace, name)
        service.apply(replicas, **spec)
        return service

    return create

from collections.abc import Iterator

import pytest

from chart_support.cluster import CRD, Release, kubectl, require_cluster


@pytest.fixture(scope="module", autouse=True)
def no_crd_from_elsewhere() -> None:
    """Delete a CRD that another client has applied, because helm refuses to change its fields."""
    require_cluster()
    kubectl("delete", "crd", CRD, "--ignore-not-found")


@pytest.fixture
def release() -> Iterator[Release]:
    require_cluster()
    it = Release()
    it.make_namespace(it.name)
    try:
        yield it
    finally:
        it.uninstall()
        kubectl("delete", "namespace", *it.namespaces, "--wait=false")

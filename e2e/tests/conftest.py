"""Fixtures of the end-to-end tests: one cluster and one installation of the chart."""

import os
import re
from collections.abc import Iterator

import pytest

from e2e_support import Cluster
from stage import Images, images_under_test, install_chart, load_images, start_hub


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """Access to the cluster of KUBECONFIG."""
    if not os.environ.get("KUBECONFIG"):
        pytest.exit("these tests need a cluster: run `make e2e`, or set KUBECONFIG", returncode=1)
    return Cluster()


@pytest.fixture(scope="session")
def local_cluster_name() -> str:
    """Name of the local cluster, for tests that need its node, its GPUs or its audit log."""
    name = os.environ.get("LOCALKUBE_NAME")
    if not name:
        pytest.fail("this test needs the local cluster: run `make e2e` without KUBECONFIG")
    return name


@pytest.fixture(scope="session")
def images() -> Images:
    return images_under_test()


@pytest.fixture(scope="session")
def hub() -> str | None:
    """URL of the test hub in the local cluster; None elsewhere, because the public hub is used."""
    name = os.environ.get("LOCALKUBE_NAME")
    return start_hub(name) if name else None


@pytest.fixture(scope="session", autouse=True)
def installation(cluster: Cluster, images: Images, hub: str | None) -> None:
    """Install the chart once, with the images under test."""
    if name := os.environ.get("LOCALKUBE_NAME"):
        load_images(name, images)
    install_chart(cluster, images, hub)


@pytest.fixture(scope="module")
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of a namespace that only this test module uses. It admits only restricted pods."""
    name = re.sub(r"[^a-z0-9]+", "-", request.module.__name__.removeprefix("test_"))
    cluster.create_namespace(name)
    yield name
    # Pods are deleted first. If a namespace still has pods, the namespace controller checks it
    # again only after half of their termination grace period: after five minutes here.
    cluster.kubectl("delete", "llm", "--all", "-n", name)
    cluster.wait_until_no_pods(name)
    cluster.kubectl("delete", "namespace", name, "--timeout=120s")

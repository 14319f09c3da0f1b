"""Runs the scrapes, the rules and the queries of the chart in a real Prometheus.

No pod runs in the API-only cluster. The pods here are objects with the address of Prometheus
itself, so their metrics are those of Prometheus.
"""

import json
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from chart_support.cluster import Release, kubectl
from chart_support.helm import Manifest
from monitoring import Prometheus, queries, start_prometheus, stop_prometheus
from shared_support.waiting import eventually
from stage import RELEASE, SYSTEM_NAMESPACE

pytestmark = pytest.mark.local

METRIC = "prometheus_build_info"
OF_RELEASE = {"app.kubernetes.io/part-of": "llmservice", "app.kubernetes.io/instance": RELEASE}
OF_SERVICES = {"app.kubernetes.io/managed-by": "llmservice-operator"}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    cluster = os.environ["LOCALKUBE_NAME"]
    yield start_prometheus(cluster, tmp_path_factory.mktemp("prometheus"))
    stop_prometheus(cluster)


@pytest.fixture
def namespaces(release: Release) -> tuple[str, str]:
    """Return the namespace of the release, and another one, of services."""
    return release.make_namespace(SYSTEM_NAMESPACE), release.name


def make_pod(
    prometheus: Prometheus, namespace: str, name: str, port: str, labels: dict[str, str]
) -> None:
    """Create a pod that runs, as far as the API server knows, at the address of Prometheus."""
    address = urlsplit(prometheus.url)
    ports = [{"name": port, "containerPort": address.port}]
    restricted = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "server", "image": "none", "ports": ports, "securityContext": restricted}
    pod: Manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [container]},
    }
    eventually(lambda: kubectl("get", "serviceaccount", "default", "-n", namespace))
    kubectl("create", "-f-", stdin=pod)
    addresses = {"podIP": address.hostname, "podIPs": [{"ip": address.hostname}]}
    status = json.dumps({"status": {"phase": "Running", **addresses}})
    kubectl(
        *("patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge"),
        f"--patch={status}",
    )


def test_prometheus_scrapes_the_pods_of_the_release_and_of_services_and_names_them(
    prometheus: Prometheus, namespaces: tuple[str, str]
) -> None:
    ours, theirs = namespaces
    make_pod(prometheus, ours, "operator", "health", OF_RELEASE)
    make_pod(prometheus, ours, "of-another-release", "health", {**OF_RELEASE, **_instance("other")})
    make_pod(prometheus, ours, "another-port", "api", OF_RELEASE)
    make_pod(
        prometheus, theirs, "replica", "management", {**OF_SERVICES, "llmservice.dev/name": "chat"}
    )
    make_pod(
        *(prometheus, theirs, "router", "management"),
        {**OF_SERVICES, "llmservice.dev/router-of": "chat"},
    )

    def scraped() -> bool:
        found = {
            (it["namespace"], it["pod"], it.get("llmservice")): it["endpoint"]
            for it in prometheus.answers(METRIC)
        }
        assert found == {
            (ours, "operator", None): "health",
            (theirs, "replica", "chat"): "management",
            (theirs, "router", "chat"): "management",
        }
        return True

    eventually(scraped)


def _instance(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/instance": name}


def test_prometheus_evaluates_all_rules(prometheus: Prometheus) -> None:
    def evaluated() -> bool:
        groups = prometheus.ask("rules")["groups"]
        states = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        assert set(states.values()) == {"ok"}, states
        return True

    eventually(evaluated)


def test_prometheus_answers_the_query_of_every_panel(prometheus: Prometheus) -> None:
    for query in queries().values():
        prometheus.answers(query)

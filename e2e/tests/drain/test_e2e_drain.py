"""Drains one of two nodes while it runs all replicas of a service, under the load of clients that
repeat no request.

`make test-drain` runs it. Both nodes share the CPU and the network of one machine.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from e2e_support import PATIENCE, Cluster
from impatient_clients import ImpatientClients, summary
from llmservice_operator.names import ROUTER_LABEL, SERVICE_LABEL
from routed import KEY, Routed
from shared_support.waiting import eventually
from watched_pods import WatchedPods

pytestmark = pytest.mark.local

KEPT, DRAINED = "node1", "node2"
REPLICAS = 2
DRAIN_TIMEOUT_SECONDS = 60
"""spec.termination.drainTimeoutSeconds of the service."""
CLIENTS = 4
HELD_BACK = "would violate the pod's disruption budget"
"""Words of kubectl about an eviction that a budget refuses for now."""


@pytest.fixture
def on_one_node(cluster: Cluster, namespace: str) -> Iterator[Callable[[str, bool], Routed]]:
    """Return a function that creates a service whose pods all run on the node DRAINED."""
    names = cluster.kubectl("get", "nodes", "-o", "name").split()
    assert names == [f"node/{KEPT}", f"node/{DRAINED}"], "two nodes: run `make test-drain`"

    def create(name: str, has_router: bool) -> Routed:
        cluster.kubectl("cordon", KEPT)
        service = Routed(cluster, namespace, name)
        service.apply(
            REPLICAS,
            router={"enabled": has_router},
            termination={"drainTimeoutSeconds": DRAIN_TIMEOUT_SECONDS},
        )
        cluster.kubectl("uncordon", KEPT)
        return service

    yield create
    cluster.kubectl("uncordon", KEPT, DRAINED)
    cluster.kubectl("delete", "llm", "--all", "-n", namespace)
    cluster.wait_until_no_pods(namespace)


def nodes_of(service: Routed) -> Counter[str]:
    """Return the number of the service's pods on each node."""
    pods = [*service.replicas(), *service.router_pods()]
    return Counter(str(pod["spec"]["nodeName"]) for pod in pods)


@pytest.mark.parametrize("has_router", [False, True], ids=["plain Service object", "router"])
def test_a_node_drain_cuts_no_request_and_waits_for_each_successor(
    on_one_node: Callable[[str, bool], Routed],
    has_router: bool,
    cluster: Cluster,
    namespace: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service = on_one_node("routed" if has_router else "plain", has_router)
    old = {pod["metadata"]["name"] for pod in service.replicas()}
    routers = len(service.router_pods())
    assert nodes_of(service) == {DRAINED: REPLICAS + routers}
    (grace,) = {pod["spec"]["terminationGracePeriodSeconds"] for pod in service.replicas()}

    with (
        ImpatientClients(service.url(), service.name, KEY, CLIENTS) as clients,
        WatchedPods(cluster, namespace) as pods,
    ):
        eventually(clients.go_on(2), within=PATIENCE, every=0.2)
        began = time.monotonic()
        told = cluster.run(
            *("sh", "-c", 'exec "$@" 2>&1', "-", "kubectl", "drain", DRAINED),
            *("--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={PATIENCE:g}s"),
        )
        seconds = time.monotonic() - began
        service.wait_ready()
        eventually(clients.go_on(2), within=PATIENCE, every=0.2)
    fewest = pods.fewest_serving(SERVICE_LABEL, service.name)
    endings = pods.endings(SERVICE_LABEL, service.name)
    with capsys.disabled():
        print(
            f"\n{service.name}: drained in {seconds:.0f} s; at least {fewest} of {REPLICAS} "
            f"replicas served; replicas ended {max(endings.values()):.0f} s after their eviction "
            f"at the latest, of {grace} s; {summary(clients.outcomes)}"
        )
    assert clients.failures() == []
    assert nodes_of(service) == {KEPT: REPLICAS + routers}
    assert HELD_BACK in told
    assert fewest >= REPLICAS - 1
    assert endings.keys() == old
    assert max(endings.values()) < grace
    # A container that is killed at the end of its grace period has the code 137.
    assert pods.exit_codes(SERVICE_LABEL, service.name) == {name: {0} for name in old}
    if has_router:
        assert pods.fewest_serving(ROUTER_LABEL, service.name) >= routers - 1

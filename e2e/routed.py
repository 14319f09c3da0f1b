"""A service behind a router on a local cluster, and the faults that the tests cause in it."""

import os
import signal
from dataclasses import dataclass

from e2e_support import PATIENCE, Cluster, Object, conditions, read, serves, wait_ready
from llmservice_operator.names import ROUTER_LABEL, SERVICE_LABEL
from localkube import dns
from localkube.cluster import Cluster as LocalCluster
from pod_processes import ENVOY, PICKER, SERVER, process_of
from shared_support.scrape import metric_of
from shared_support.waiting import eventually
from stage import SYSTEM_NAMESPACE, TINY_MODEL, cpu_service

KEYS, KEY = "keys", "key-of-a-client"
"""Name of the Secret with the keys, and the only key."""
ROUNDS = int(os.environ.get("LLMSERVICE_TEST_ROUNDS", "2"))
"""Number of times that each test with a fault or a rollout runs."""
METRICS_SERVERS = "app.kubernetes.io/component=metrics-server"


@dataclass(frozen=True)
class Routed:
    """A service with a router."""

    cluster: Cluster
    namespace: str
    name: str

    def apply(self, replicas: int | None, **spec: object) -> None:
        """Create the service and its key, and wait until it serves.

        `replicas` is None for a service with autoscaling.
        """
        service = cpu_service(self.name, f"hf://{TINY_MODEL}")
        service["spec"] |= {"replicas": replicas, "router": {"enabled": True}, **spec}
        service["spec"]["auth"] = {"apiKeysSecretRef": {"name": KEYS}}
        keys = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS}}
        self.cluster.apply({**keys, "stringData": {"client": KEY}}, self.namespace)
        self.cluster.apply(service, self.namespace)
        self.wait_ready()

    def patch(self, **spec: object) -> None:
        self.cluster.patch_spec(self.name, self.namespace, spec)

    def wait_ready(self) -> None:
        """Wait until all replicas and all router pods serve."""
        wait_ready(self.cluster, self.name, self.namespace)
        eventually(self._is_settled, within=PATIENCE, every=1)

    def _is_settled(self) -> bool:
        service = self.cluster.read("llmservice", self.name, self.namespace)
        assert service is not None
        found = conditions(service)
        assert found["Ready"]["reason"] == "Serving", found["Ready"]
        router = found.get("RouterReady")
        if service["spec"]["router"]["enabled"]:
            assert router is not None
            assert router["reason"] == "RouterServing", router
            assert len(self.router_pods()) == service["spec"]["router"].get("replicas", 2)
        else:
            assert router is None, router
        replicas = self.replicas()
        assert len(replicas) == service["spec"].get("replicas", 1)
        return all(serves(pod) for pod in (*replicas, *self.router_pods()))

    def url(self) -> str:
        return self.cluster.address_of(self.name, self.namespace)

    def replicas(self) -> list[Object]:
        return self.cluster.list("pods", self.namespace, f"{SERVICE_LABEL}={self.name}")

    def router_pods(self) -> list[Object]:
        """Return the router pods. The picker of the first one chooses for all of them."""
        pods = self.cluster.list("pods", self.namespace, f"{ROUTER_LABEL}={self.name}")
        return sorted(pods, key=lambda pod: str(pod["status"].get("podIP", "")))

    def selected_addresses(self) -> set[str]:
        """Return the addresses of the pods behind the Service object."""
        selector = f"kubernetes.io/service-name={self.name}"
        slices = self.cluster.list("endpointslices", self.namespace, selector)
        ends = [end for each in slices for end in each["endpoints"] or ()]
        return {address for end in ends for address in end["addresses"]}

    def kill(self, pod: Object, word: str) -> None:
        """Kill a process of a pod."""
        os.kill(process_of(pod, word), signal.SIGKILL)

    def delete(self, pod: Object, *options: str) -> None:
        """Delete a pod, without waiting until it is gone."""
        name = pod["metadata"]["name"]
        self.cluster.kubectl("delete", "pod", name, "-n", self.namespace, "--wait=false", *options)

    def metric(self, pod: Object, name: str) -> float:
        """Return the sum of a metric's values on the management port of a pod; 0 without values."""
        address = pod["status"]["podIP"]
        return metric_of(read(f"http://{address}:9090/metrics").decode(), name)

    def held_requests(self) -> float:
        """Return the number of requests that wait in the routers for a replica."""
        names = ("llmservice_router_held_requests", "llmservice_router_forwarder_waiting_requests")
        return sum(self.metric(pod, name) for pod in self.router_pods() for name in names)

    def kill_picker(self) -> None:
        self.kill(self.router_pods()[0], PICKER)

    def kill_both_pickers(self) -> None:
        for pod in self.router_pods():
            self.kill(pod, PICKER)

    def kill_envoy(self) -> None:
        self.kill(self.router_pods()[0], ENVOY)

    def kill_router_pod(self) -> None:
        self.delete(self.router_pods()[0], "--grace-period=0", "--force")

    def kill_replica(self) -> None:
        self.kill(self.replicas()[0], SERVER)

    def drain_replica(self) -> None:
        # The replica that was killed. Its next kill would otherwise be followed by a long pause.
        self.delete(max(self.replicas(), key=_restarts))

    def kill_metrics_servers(self) -> None:
        self.cluster.kubectl(
            *("delete", "pods", "-n", SYSTEM_NAMESPACE, "-l", METRICS_SERVERS),
            *("--grace-period=0", "--force", "--wait=false"),
        )


def kill_dns() -> None:
    """Kill the DNS of the local cluster."""
    process = _local_cluster().daemons()["coredns"]
    if process is not None:
        os.kill(process, signal.SIGKILL)


def restart_dns(cache_seconds: int = dns.CACHE_SECONDS) -> None:
    """Start the DNS of the local cluster again. It caches its answers for this time in seconds."""
    cluster = _local_cluster()
    cluster.stop_daemon("coredns")
    dns.start(cluster, cache_seconds)


def _local_cluster() -> LocalCluster:
    return LocalCluster(os.environ["LOCALKUBE_NAME"])


def _restarts(pod: Object) -> int:
    return sum(int(state["restartCount"]) for state in pod["status"]["containerStatuses"])

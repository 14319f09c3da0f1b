"""A service that has no replicas while nobody uses it, and how its first replica comes back."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from e2e_support import PATIENCE, Cluster, Object, conditions
from faults import OPERATORS
from llmservice_operator.names import SERVICE_LABEL
from routed import METRICS_SERVERS, Routed
from shared_support.waiting import eventually
from stage import SYSTEM_NAMESPACE

IDLE_SECONDS: Final = 60
"""Time in seconds without a request after which a service of the tests loses its replicas."""
CREATED_WITHIN_SECONDS: Final = 3.0
"""Time in seconds from the first request until the API server has a pod, if no part is away."""


def resting_spec(hold_seconds: int, most_replicas: int) -> dict[str, object]:
    """Return the part of a spec with which a service loses its replicas while nobody uses it.

    A request waits in the router for at most `hold_seconds`.
    """
    idle = {"afterSeconds": IDLE_SECONDS}
    return {
        "autoscaling": {"minReplicas": 0, "maxReplicas": most_replicas, "idle": idle},
        "router": {"enabled": True, "holdTimeoutSeconds": hold_seconds},
    }


def is_idle(service: Routed) -> bool:
    """Return whether the service has no replicas, and its status agrees."""
    live = service.cluster.read("llmservice", service.name, service.namespace)
    assert live is not None
    ready = conditions(live)["Ready"]
    assert (ready["status"], ready["reason"]) == ("True", "Idle"), ready
    assert ready["observedGeneration"] == live["metadata"]["generation"], ready
    return not service.replicas()


def until_resting(service: Routed) -> None:
    """Wait until the service has no replicas, and no part of it or of the release is replaced."""
    wait_for_release(service.cluster)
    eventually(lambda: is_idle(service), within=PATIENCE, every=1)
    eventually(lambda: _has_whole_router(service), within=PATIENCE, every=1)


def wait_for_release(cluster: Cluster) -> None:
    """Wait until all pods of the operator and of the metrics servers are new and Ready."""
    for name in _deployments(cluster):
        options = ("-n", SYSTEM_NAMESPACE, f"--timeout={PATIENCE:g}s")
        cluster.kubectl("rollout", "status", name, *options)


def restart_release(cluster: Cluster) -> None:
    """Replace all pods of the operator and of the metrics servers, as an upgrade does."""
    cluster.kubectl("rollout", "restart", "-n", SYSTEM_NAMESPACE, *_deployments(cluster))


def leading_operator(cluster: Cluster) -> Object:
    """Return the pod of the operator that leads."""
    pods = cluster.list("pods", SYSTEM_NAMESPACE, OPERATORS)
    holders = {
        str(lease["spec"].get("holderIdentity") or "").rpartition("_")[0]
        for lease in cluster.list("leases", SYSTEM_NAMESPACE)
    }
    (leader,) = (pod for pod in pods if pod["metadata"]["name"] in holders)
    return leader


def _deployments(cluster: Cluster) -> list[str]:
    return [
        f"deployment/{found['metadata']['name']}"
        for selector in (OPERATORS, METRICS_SERVERS)
        for found in cluster.list("deployments", SYSTEM_NAMESPACE, selector)
    ]


def _has_whole_router(service: Routed) -> bool:
    live = conditions(service.cluster.read("llmservice", service.name, service.namespace))
    assert live["RouterReady"]["reason"] == "RouterServing", live["RouterReady"]
    pods = service.router_pods()
    assert not any("deletionTimestamp" in pod["metadata"] for pod in pods)
    return len(pods) == 2


@contextmanager
def first_replica(service: Routed) -> Iterator[Callable[[], float]]:
    """Watch the pods of a service without replicas.

    The result is a function that waits for the first pod, and returns the time of
    `time.monotonic` at which it was seen.
    """
    command = ["kubectl", "get", "pods", "-n", service.namespace, "--watch", "-o", "name"]
    command += ["-l", f"{SERVICE_LABEL}={service.name}"]
    seen: list[float] = []
    with subprocess.Popen(
        [*service.cluster.prefix, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # "No resources found"
        text=True,
    ) as watch:

        def read() -> None:
            for _ in watch.stdout or ():
                seen.append(time.monotonic())

        reader = threading.Thread(target=read)
        reader.start()

        def wait() -> float:
            eventually(lambda: seen, PATIENCE, "a pod of a replica", every=0.05)
            return seen[0]

        try:
            yield wait
        finally:
            watch.terminate()
            reader.join()

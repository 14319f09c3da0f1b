"""Tests that rollouts finish while every GPU is in use, and tests their effect on clients."""

import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import pytest

from e2e_support import PATIENCE, Cluster, CommandFailed, Object, ask, conditions, wait_ready
from shared_support.waiting import eventually
from stage import TINY_MODEL, cpu_service, localkube

pytestmark = pytest.mark.local

SINGLE, PAIR = "single", "pair"
OTHER_GPU = "example.com/gpu"
"""Resource that only the service SINGLE requests, so that both rollouts can wait at the same
time."""


class Client:
    """Client that sends requests until it is stopped, and records each request's time and error."""

    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = url, model
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers: list[tuple[float, str]] = []
        """End time of each request in seconds of `time.monotonic`, and its error. The error of a
        successful request is empty."""

    def __enter__(self) -> "Client":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        body = {"model": self._model, "prompt": "Hello", "max_tokens": 2}
        while not self._stop.wait(0.1):
            error = ""
            try:
                ask(f"{self._url}/v1/completions", body, timeout=30)
            except (AssertionError, OSError) as problem:
                error = str(problem)
            self.answers.append((time.monotonic(), error))

    def was_answered_since(self, moment: float) -> bool:
        """Return whether at least ten requests have been answered since this time."""
        return sum(when > moment and not error for when, error in self.answers) >= 10

    def failures(self) -> list[str]:
        return [error for _, error in self.answers if error]

    def gap(self) -> float:
        """Return the longest time between two answers, in seconds."""
        times = [when for when, error in self.answers if not error]
        return max(later - earlier for earlier, later in pairwise(times))


def gpu_service(name: str, replicas: int, resource: str) -> Object:
    service = cpu_service(name, f"hf://{TINY_MODEL}")
    service["spec"] |= {
        "replicas": replicas,
        "accelerator": {"count": 1, "resourceName": resource},
        "termination": {"drainTimeoutSeconds": 60},
    }
    return service


def advertise(cluster: Cluster, resource: str, count: int) -> None:
    """Make every node advertise this amount of a resource; 0 removes the resource."""
    amount = str(count) if count else None
    patch = {"status": {part: {resource: amount} for part in ("capacity", "allocatable")}}
    names = cluster.kubectl("get", "nodes", "-o", "name").split()
    for name in names:
        cluster.kubectl(
            "patch", name, "--subresource=status", "--type=merge", f"--patch={json.dumps(patch)}"
        )


@pytest.fixture(scope="module")
def rollouts(
    cluster: Cluster, namespace: str, local_cluster_name: str
) -> Iterator[dict[str, Client]]:
    """Clients that sent requests to both services during a rollout. The rollout has ended."""
    localkube("gpus", "2", "--name", local_cluster_name)
    advertise(cluster, OTHER_GPU, 1)
    cluster.apply(gpu_service(SINGLE, 1, OTHER_GPU), namespace)
    cluster.apply(gpu_service(PAIR, 2, "nvidia.com/gpu"), namespace)
    for name in (SINGLE, PAIR):
        wait_ready(cluster, name, namespace)
    clients = {name: Client(cluster.address_of(name, namespace), name) for name in (SINGLE, PAIR)}
    with clients[SINGLE], clients[PAIR]:
        for name in clients:
            cluster.patch_spec(name, namespace, {"engine": {"maxModelLen": 256}})
        for name in clients:
            eventually(partial(in_place, cluster, name, namespace), within=PATIENCE, every=1)
        for name in clients:
            wait_ready(cluster, name, namespace)
        for each in clients.values():
            eventually(partial(each.was_answered_since, time.monotonic()), within=PATIENCE)
    yield clients
    localkube("gpus", "0", "--name", local_cluster_name)
    advertise(cluster, OTHER_GPU, 0)


def in_place(cluster: Cluster, name: str, namespace: str) -> bool:
    service = cluster.read("llm", name, namespace)
    progressing = conditions(service).get("Progressing", {})
    assert progressing.get("reason") == "RolloutInPlace", progressing
    downtime = "With one replica, the service is unavailable in between." in progressing["message"]
    return downtime is (name == SINGLE)


def revisions(cluster: Cluster, namespace: str, name: str) -> int:
    """Return the number of pod templates that the Deployment has had."""
    return len(cluster.list("replicasets", namespace, f"llmservice.dev/name={name}"))


def test_one_replica_on_the_only_gpu_is_replaced_with_a_gap(
    cluster: Cluster,
    namespace: str,
    rollouts: dict[str, Client],
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = rollouts[SINGLE]
    with capsys.disabled():
        print(f"\none replica on one GPU: nobody answered for {client.gap():.1f} s")
    assert client.failures()
    assert_ended(cluster, namespace, SINGLE)


def test_two_replicas_on_two_gpus_are_replaced_without_a_failed_request(
    cluster: Cluster,
    namespace: str,
    rollouts: dict[str, Client],
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = rollouts[PAIR]
    with capsys.disabled():
        print(f"\ntwo replicas on two GPUs: {len(client.answers)} requests, 0 to fail")
    assert client.failures() == []
    assert_ended(cluster, namespace, PAIR)


def assert_ended(cluster: Cluster, namespace: str, name: str) -> None:
    """Assert that the Deployment has its earlier update strategy again, and that the two changes of
    the strategy created no pod template.
    """

    def surges() -> bool:
        strategy = (cluster.read("deployment", name, namespace) or {})["spec"]["strategy"]
        return bool(strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0})

    eventually(surges, within=30)
    assert "rollout" not in (cluster.read("llm", name, namespace) or {})["status"]
    assert revisions(cluster, namespace, name) == 2


@pytest.mark.usefixtures("rollouts")
@pytest.mark.parametrize(("name", "replicas"), [(SINGLE, 1), (PAIR, 2)])
def test_a_node_drain_can_evict_every_replica_and_only_one_at_a_time(
    cluster: Cluster, namespace: str, name: str, replicas: int
) -> None:
    wait_ready(cluster, name, namespace)
    selector = f"llmservice.dev/name={name}"

    def pods() -> set[str]:
        return {pod["metadata"]["name"] for pod in cluster.list("pods", namespace, selector)}

    first, *others = before = pods()
    assert len(before) == replicas
    assert evict(cluster, namespace, first)
    if others:
        # The pod that replaces the first one is still loading the model, so the budget allows no
        # further eviction.
        assert not evict(cluster, namespace, others[0])
    for pod in others:
        eventually(partial(evict, cluster, namespace, pod), within=PATIENCE, every=1)
    eventually(lambda: not before & pods(), within=PATIENCE)
    # The last new pod is no longer needed. Its start would use a CPU while other pods start.
    cluster.kubectl("delete", "llm", name, "-n", namespace, "--wait=false")


def evict(cluster: Cluster, namespace: str, pod: str) -> bool:
    """Request an eviction, as `kubectl drain` does; return whether the budget allowed it."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace},
    }
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    try:
        cluster.run("kubectl", "create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    except CommandFailed as refused:
        if "disruption budget" in str(refused):
            return False
        raise
    return True

"""Causes faults of a service on a full local cluster, for the tests of alerts and for drills.

Each fault is a context: it exists while the block runs.
"""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from e2e_support import PATIENCE, Cluster, Object, conditions, wait_ready
from impatient_clients import ImpatientClients
from llmservice_operator.names import ROUTER_LABEL
from pod_processes import OPERATOR, SERVER, process_of
from routed import KEY, KEYS
from shared_support.waiting import eventually
from stage import SYSTEM_NAMESPACE, TINY_MODEL, cpu_service, localkube

OPERATORS = "app.kubernetes.io/component=operator"
EXTERNAL_METRICS = "v1beta1.external.metrics.k8s.io"
CLIENTS = 16
RESTARTS = 3

Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Scene:
    """One service on a full local cluster."""

    cluster: Cluster
    local: str
    """Name of the local cluster."""
    namespace: str
    service: str

    def apply(self, spec: Spec) -> None:
        """Create the service, whose clients have an API key. Its spec changes that of a small
        service on CPUs.
        """
        keys = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS}}
        self.cluster.apply({**keys, "stringData": {"client": KEY}}, self.namespace)
        manifest = cpu_service(self.service, f"hf://{TINY_MODEL}")
        auth = {"apiKeysSecretRef": {"name": KEYS}}
        manifest["spec"] |= {**spec, "auth": {**auth, **spec.get("auth", {})}}
        self.cluster.apply(manifest, self.namespace)

    def wait_ready(self) -> None:
        wait_ready(self.cluster, self.service, self.namespace)

    def clients(self, number: int = CLIENTS) -> ImpatientClients:
        url = self.cluster.address_of(self.service, self.namespace)
        return ImpatientClients(url, self.service, KEY, clients=number, pause_seconds=0.05)

    def set_gpus(self, number: int) -> None:
        """Make the node advertise this number of GPUs."""
        localkube("gpus", str(number), "--name", self.local)

    def condition(self, kind: str) -> Object:
        return conditions(self.cluster.read("llm", self.service, self.namespace))[kind]

    def is_routed(self) -> bool:
        """Return whether clients reach the replicas through the router."""
        return bool(self.condition("RouterReady")["reason"] == "RouterServing")

    def router_pods(self) -> list[Object]:
        return self.cluster.list("pods", self.namespace, f"{ROUTER_LABEL}={self.service}")

    def patch(self, spec: Spec) -> None:
        self.cluster.patch_spec(self.service, self.namespace, spec)

    @contextmanager
    def served(self) -> Iterator[None]:
        """Serve a few requests."""
        with self.clients(1) as clients:
            eventually(clients.go_on(20), within=PATIENCE)
        yield

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Send more requests than one replica bears."""
        with self.clients():
            yield

    @contextmanager
    def without(self, selector: str) -> Iterator[None]:
        """Run no pod of a component of the release."""
        self._scale(selector, 0)
        try:
            yield
        finally:
            self._scale(selector, 2)

    @contextmanager
    def without_a_leader(self) -> Iterator[None]:
        """Kill the operator in all of its pods. Until the Lease ends that it could not give back,
        the new processes wait.
        """
        for pod in self.cluster.list("pods", SYSTEM_NAMESPACE, OPERATORS):
            os.kill(process_of(pod, OPERATOR), signal.SIGKILL)
        yield

    @contextmanager
    def without_a_gpu(self) -> Iterator[None]:
        """Delete the replica while no node has a GPU for another one."""
        self.set_gpus(0)
        self.cluster.kubectl("delete", "pods", "-n", self.namespace, "--all", "--grace-period=1")
        try:
            yield
        finally:
            self.set_gpus(1)
            self.wait_ready()

    @contextmanager
    def unreachable_metrics_api(self) -> Iterator[None]:
        """Take the pods away from the Service object of the metrics servers."""
        path = "-o=jsonpath={.spec.service.name}"
        name = self.cluster.kubectl("get", "apiservice", EXTERNAL_METRICS, path)
        patch = '{"spec": {"selector": {"away": %s}}}'
        change = ("patch", "service", name, "-n", SYSTEM_NAMESPACE, "-p")
        self.cluster.kubectl(*change, patch % '"true"')
        try:
            yield
        finally:
            self.cluster.kubectl(*change, patch % "null")

    @contextmanager
    def restarted(self) -> Iterator[None]:
        """Kill the model server again and again."""
        (pod,) = self.cluster.list("pods", self.namespace)
        for _ in range(RESTARTS):
            os.kill(eventually(lambda: process_of(pod, SERVER)), signal.SIGKILL)
            eventually(
                lambda: self.condition("Ready")["status"] != "True", within=PATIENCE, every=0.5
            )
            self.wait_ready()
        yield

    @contextmanager
    def rolled_out_without_an_image(self) -> Iterator[None]:
        """Roll out an image that does not exist."""
        self.patch({"engine": {"image": "registry.invalid/server:1"}})
        try:
            yield
        finally:
            self.patch({"engine": {"image": None}})
            self.wait_ready()

    def _scale(self, selector: str, replicas: int) -> None:
        which = ("-n", SYSTEM_NAMESPACE, "-l", selector)
        self.cluster.kubectl("scale", "deployment", *which, f"--replicas={replicas}")

"""A service under load that stays the same while releases of the operator come and go."""

import json
from collections import Counter
from dataclasses import dataclass, field

from e2e_support import PATIENCE, Cluster, Object, conditions, is_ready, pod_states, wait_ready
from impatient_clients import Ending, ImpatientClients
from llmservice_operator.names import INSTANCE_LABEL, ROUTER_LABEL, SERVICE_LABEL
from shared_support.waiting import eventually
from stage import TINY_MODEL, cpu_service

CLIENTS = 4
PAUSE_SECONDS = 1.0


@dataclass
class Served:
    """A service with one replica, and the clients that send it requests."""

    cluster: Cluster
    namespace: str
    name: str
    has_router: bool
    clients: ImpatientClients = field(init=False)

    def __post_init__(self) -> None:
        service = cpu_service(self.name, f"hf://{TINY_MODEL}")
        # The only spelling that also release 0.1.0 knows.
        service["spec"]["engine"]["dtype"] = "float32"
        if self.has_router:
            service["spec"]["router"] = {"enabled": True}
        self.cluster.apply(service, self.namespace)
        wait_ready(self.cluster, self.name, self.namespace)
        if self.has_router:
            eventually(self._reaches_its_router, within=PATIENCE, every=1)
        self.clients = ImpatientClients(
            self.cluster.address_of(self.name, self.namespace),
            self.name,
            key="",
            clients=CLIENTS,
            pause_seconds=PAUSE_SECONDS,
        )

    def replicas(self) -> list[Object]:
        return self.cluster.list("pods", self.namespace, f"{SERVICE_LABEL}={self.name}")

    def router_pods(self) -> list[Object]:
        return self.cluster.list("pods", self.namespace, f"{ROUTER_LABEL}={self.name}")

    def states(self) -> dict[str, tuple[str, int]]:
        """Return the UID and the restarts of each replica, by its name."""
        return pod_states(self.replicas())

    def images(self) -> set[str]:
        """Return the images of the replicas."""
        return {each["image"] for pod in self.replicas() for each in pod["spec"]["containers"]}

    def templates(self) -> set[str]:
        """Return the names of the ReplicaSets. There is one for each pod template so far."""
        selector = f"{SERVICE_LABEL}={self.name}"
        found = self.cluster.list("replicasets", self.namespace, selector)
        return {each["metadata"]["name"] for each in found}

    def wait_reconciled(self, router_image: str) -> None:
        """Wait until the leading operator has written an object of the service, and until the
        status is true: all pods are those of the last rollout, they are ready, and so is the
        service. Router pods have the given image.
        """
        self._edit()
        eventually(self._is_restored, within=PATIENCE, every=1)
        if self.has_router:
            eventually(lambda: self._has_router_image(router_image), within=PATIENCE, every=1)
        eventually(self._is_settled, within=PATIENCE, every=1)

    def _edit(self) -> None:
        """Remove a label, which the operator restores. The label has no effect on requests."""
        patch = json.dumps({"metadata": {"labels": {INSTANCE_LABEL: None}}})
        options = ("-n", self.namespace, "--type=merge", f"--patch={patch}")
        self.cluster.kubectl("patch", "service", self.name, *options)

    def _is_restored(self) -> bool:
        found = self.cluster.read("service", self.name, self.namespace)
        assert found is not None
        return bool(found["metadata"]["labels"].get(INSTANCE_LABEL) == self.name)

    def _has_router_image(self, image: str) -> bool:
        found = self.cluster.read("deployment", f"{self.name}-router", self.namespace)
        assert found is not None
        containers = found["spec"]["template"]["spec"]["containers"]
        assert {each["image"] for each in containers} == {image}
        return True

    def _is_settled(self) -> bool:
        service = self.cluster.read("llmservice", self.name, self.namespace)
        assert is_ready(service), conditions(service)
        assert conditions(service)["Ready"]["reason"] == "Serving", conditions(service)["Ready"]
        names = (self.name, f"{self.name}-router") if self.has_router else (self.name,)
        for name in names:
            deployment = self.cluster.read("deployment", name, self.namespace)
            assert deployment is not None
            status, wanted = deployment["status"], deployment["spec"]["replicas"]
            assert status["observedGeneration"] == deployment["metadata"]["generation"], status
            counts = [
                status.get(count)
                for count in ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
            ]
            assert counts == [wanted] * len(counts), status
        pods = [*self.replicas(), *self.router_pods()]
        leaving = [it["metadata"]["name"] for it in pods if "deletionTimestamp" in it["metadata"]]
        assert leaving == []
        return True

    def _reaches_its_router(self) -> bool:
        """Return True when the clients' connections lead to the router."""
        found = self.cluster.read("service", self.name, self.namespace)
        assert found is not None
        assert found["spec"]["selector"].get(ROUTER_LABEL) == self.name, found["spec"]["selector"]
        return True


@dataclass(frozen=True)
class Changes:
    """What a step did to the pods of a service, and the requests that ended meanwhile."""

    replaced: int
    """Number of replicas that are no longer there."""
    restarted: int
    """Number of restarts of containers in the other replicas."""
    router_pods: int
    """Number of router pods that are no longer there."""
    router_restarts: int
    requests: Counter[Ending]


@dataclass(frozen=True)
class Snapshot:
    """The pods of a service and the number of its finished requests, at one moment."""

    service: Served
    replicas: dict[str, tuple[str, int]]
    router_pods: dict[str, tuple[str, int]]
    images: set[str]
    """Images of the replicas."""
    templates: set[str]
    """Names of the ReplicaSets, one for each pod template so far."""
    requests: int

    @classmethod
    def of(cls, service: Served) -> "Snapshot":
        return cls(
            service,
            service.states(),
            pod_states(service.router_pods()),
            service.images(),
            service.templates(),
            len(service.clients.outcomes),
        )

    def changes_until(self, later: "Snapshot") -> Changes:
        outcomes = self.service.clients.outcomes[self.requests : later.requests]
        return Changes(
            *_difference(self.replicas, later.replicas),
            *_difference(self.router_pods, later.router_pods),
            Counter(each.ending for each in outcomes),
        )


def _difference(
    before: dict[str, tuple[str, int]], after: dict[str, tuple[str, int]]
) -> tuple[int, int]:
    """Return the number of pods that are gone, and the restarts in the others."""
    kept = before.keys() & after.keys()
    same = {name for name in kept if before[name][0] == after[name][0]}
    restarts = sum(
        state[1] - (before[name][1] if name in same else 0) for name, state in after.items()
    )
    return len(before) - len(same), restarts

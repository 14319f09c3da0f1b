"""A second, fictitious kind of workload, whose replicas each have a server pod and a worker pod.

It shows that a kind of workload needs only one class and its registration. The object, status
and labels of this kind differ from a Deployment's on purpose.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.kinds import Kind
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import (
    EnginePin,
    Problem,
    Replica,
    ReplicaCount,
    Workload,
    WorkloadState,
)
from operator_support.services import a_pod

PAIR_SETS = Kind("example.org", "v1", "PairSet", "pairsets", names.CHILD_SELECTOR)
PAIR = "example.org/pair"
ROLE = "example.org/role"
REVISION = "example.org/revision"
IN_PAIRS = {"template": {"labels": {"example.org/pairs": "yes"}}}
"""Part of a spec that requests pairs."""


class _PairSet:
    kind = PAIR_SETS

    def runs(self, service: LLMService) -> bool:
        return "example.org/pairs" in service.spec.template.labels

    def made(self, pod: Manifest) -> bool:
        return PAIR in pod["metadata"]["labels"]

    def name(self, service: LLMService) -> str:
        return f"{service.name}-pairs"

    def build_spec(
        self,
        service: LLMService,
        settings: OperatorSettings,
        pin: EnginePin,
        count: ReplicaCount,
    ) -> dict[str, Any]:
        return {**count.fields, "serverImage": pin.image}

    def keep_spec(
        self, service: LLMService, count: ReplicaCount, applied: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {**count.fields, "serverImage": applied["serverImage"]}

    def pods_of(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"serverImage": spec["serverImage"]}

    def kept_revision(self, service: LLMService, revision: str) -> tuple[Kind, str] | None:
        return None

    def pods_of_revision(self, kept: Manifest) -> Mapping[str, Any]:
        raise AssertionError("this kind keeps no earlier revisions")

    def state_of(self, live: Manifest) -> WorkloadState:
        pairs = live["status"]
        refusals = pairs.get("refusals", ())
        return WorkloadState(
            desired=live["spec"]["replicas"],
            replicas=pairs["all"],
            ready=pairs["ready"],
            is_current=pairs["seen"] == live["metadata"]["generation"],
            updated=pairs["new"],
            problems=tuple(Problem(Reason.POD_REFUSED, each) for each in refusals),
        )

    def replicas_of(self, pods: Iterable[Manifest]) -> Iterator[Replica]:
        by_pair: dict[str, dict[str, Manifest]] = {}
        for pod in pods:
            labels = pod["metadata"]["labels"]
            by_pair.setdefault(labels[PAIR], {})[labels[ROLE]] = pod
        for pair in by_pair.values():
            if "server" in pair:
                server = pair.pop("server")
                revision = server["metadata"]["labels"][REVISION]
                yield Replica(server, revision, tuple(pair.values()), size=2)

    def pinned_image(self, live: Manifest) -> str | None:
        image: str = live["spec"]["serverImage"]
        return image

    def scale_reference(self, service: LLMService) -> dict[str, str]:
        return {
            "apiVersion": self.kind.api_version,
            "kind": self.kind.kind,
            "name": self.name(service),
        }

    def server_selector(self, service: LLMService) -> Mapping[str, str]:
        return {**names.selector(service), ROLE: "server"}


PAIRS: Workload = _PairSet()


def a_pair_set(all_: int = 2, new: int = 2, ready: int = 0, **status: Any) -> Manifest:
    """Return a live object that requests two pairs.

    `all_`, `new` and `ready` are numbers of pairs. `status` adds fields to the status.
    """
    return {
        "apiVersion": PAIR_SETS.api_version,
        "kind": PAIR_SETS.kind,
        "metadata": {
            "name": "qwen-pairs",
            "namespace": "team",
            "uid": "uid-2",
            "generation": 1,
            "resourceVersion": "7",
            "ownerReferences": [
                {
                    "apiVersion": "llmservice.dev/v1alpha1",
                    "kind": "LLMService",
                    "name": "qwen",
                    "uid": "uid-1",
                    "controller": True,
                }
            ],
        },
        "spec": {"replicas": 2, "serverImage": "registry/gpu:1"},
        "status": {"all": all_, "new": new, "ready": ready, "seen": 1, **status},
    }


def a_pod_of_a_pair(pair: str, role: str, *, revision: str = "1", **pod: Any) -> Manifest:
    """Return a pod. A server has the name of its pair. A worker has this name with the suffix
    `-worker`.
    """
    made = a_pod(pod.pop("state", None), **pod)
    name = pair if role == "server" else f"{pair}-worker"
    return {
        **made,
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "team",
            "creationTimestamp": made["metadata"]["creationTimestamp"],
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "7",
            "labels": {
                names.SERVICE_LABEL: "qwen",
                PAIR: pair,
                ROLE: role,
                REVISION: revision,
            },
        },
        "status": {**made["status"], "podIP": name},
    }


def a_pair(pair: str, **pod: Any) -> list[Manifest]:
    return [a_pod_of_a_pair(pair, role, **pod) for role in ("server", "worker")]

"""Changes of a service during which the operator is killed, one or more for each part of a spec."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES, PODS
from operator_support.fault_flows import service_of, specs_with_every_child
from operator_support.processes import Api, make_pods_ready, make_service, until_pods

NAME: Final = "llm"
Spec = Mapping[str, Any]
Step = Callable[[Api, str], object]

BASE: Final[Spec] = make_service(NAME, "any")["spec"]

CHANGES: Final[Mapping[str, Spec]] = {
    "model": {"model": {"uri": "hf://llmservice-test/another-llama"}},
    "model.adapters": {
        "model": {**BASE["model"], "adapters": [{"name": "sql", "uri": "hf://org/sql"}]}
    },
    "model.cache": {
        "model": {**BASE["model"], "cache": {"type": "PersistentVolumeClaim", "size": "1Gi"}}
    },
    "replicas": {"replicas": 2},
    "replicas: 0": {"replicas": 0},
    "autoscaling": {"autoscaling": {"maxReplicas": 3}},
    "slo": {"slo": {"ttftMilliseconds": 800}},
    "accelerator": {"accelerator": {"type": "nvidia", "count": 2}},
    "engine": {"engine": {"maxModelLen": 256}},
    "resources": {"resources": {"requests": {"cpu": 2, "memory": "4Gi"}}},
    "template": {"template": {"nodeSelector": {"disk": "fast"}}},
    "objectMetadata": {"objectMetadata": {"labels": {"team": "search"}}},
    "service": {"service": {"port": 8080, "annotations": {"example.com/note": "any"}}},
    "router": {"router": {"enabled": True}},
    "router.mode": {"router": {"enabled": True, "mode": "InferencePool"}},
    "route": {"route": {"parentRefs": [{"name": "gateway"}]}},
    "serving": {"serving": {"requestTimeoutSeconds": 60}},
    "auth": {"auth": {"apiKeysSecretRef": {"name": "keys"}}},
    "startup": {"startup": {"timeoutSeconds": 600}},
    "smokeTest": {"smokeTest": {"enabled": False}},
    "termination": {"termination": {"drainTimeoutSeconds": 60}},
    "rolloutStrategy": {"rolloutStrategy": {"type": "Recreate"}},
    "podDisruptionBudget": {"podDisruptionBudget": {"maxUnavailable": 2}},
    "networkPolicy": {"networkPolicy": {"enabled": False}},
    "caBundle": {"caBundle": {"configMapKeyRef": {"name": "authority", "key": "ca.crt"}}},
    "suspend": {"suspend": True},
}
"""Changes by name, each with the parts that replace those of the spec `BASE`. Together they change
each field of the spec, and each part that has a child of its own."""


@dataclass(frozen=True)
class Flow:
    before: Step
    during: Step
    """The change during which the operator is killed."""
    is_deleted: bool = False
    """True if the service is deleted at the moment of the kill."""

    def end(self, api: Api, namespace: str) -> None:
        """Delete the service at the moment of the kill, if the flow does so."""
        if self.is_deleted:
            api.delete(LLMSERVICES, namespace, NAME)


def _nothing(_: Api, __: str) -> None:
    """Do nothing, because no service exists before the change that creates it."""


def _create(spec: Spec) -> Step:
    return lambda api, namespace: api.create(LLMSERVICES, service_of(NAME, namespace, spec))


def _replace(spec: Spec) -> Step:
    change = [{"op": "replace", "path": "/spec", "value": spec}]
    content_type = "application/json-patch+json"
    return lambda api, namespace: api.request(
        "PATCH", LLMSERVICES.path(namespace, NAME), change, content_type
    )


def _flows() -> dict[str, Flow]:
    flows = {
        f"create {example}": Flow(_nothing, _create(spec))
        for example, spec in specs_with_every_child().items()
    }
    for name, change in CHANGES.items():
        changed = {**BASE, **change}
        flows[f"set {name}"] = Flow(_create(BASE), _replace(changed))
        flows[f"unset {name}"] = Flow(_create(changed), _replace(BASE))
    autoscaled = {**BASE, **CHANGES["autoscaling"]}
    flows["delete while it is made"] = Flow(_nothing, _create(autoscaled), is_deleted=True)
    flows["delete while it changes"] = Flow(_create(BASE), _replace(autoscaled), is_deleted=True)
    return flows


FLOWS: Final = _flows()


def serve(api: Api, namespace: str) -> frozenset[str]:
    """Make every pod of the service ready; return their uids."""
    wanted = sum(each["spec"]["replicas"] for each in api.list_all(DEPLOYMENTS, namespace))
    until_pods(api, namespace, NAME, wanted)
    make_pods_ready(api, namespace, NAME)
    return frozenset(each["metadata"]["uid"] for each in api.list_all(PODS, namespace))


def still_served(api: Api, namespace: str, served: frozenset[str]) -> int:
    """Return the number of the pods in `served` that still exist and are not terminating."""
    return sum(
        each["metadata"]["uid"] in served and "deletionTimestamp" not in each["metadata"]
        for each in api.list_all(PODS, namespace)
    )

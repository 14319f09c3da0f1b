"""The objects of a large cluster, as the watches of a metrics server deliver them."""

from collections.abc import Iterator
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.cluster import Cache, Key
from operator_support.processes import make_service
from scrape.servers import address_of

NAMESPACES: Final = 50
SINCE: Final = "2026-01-01T00:00:00Z"
CONDITIONS: Final = (
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
)


def cache_of(services: int, pods: int, silent: int = 0) -> Cache:
    """Return the cache with so many services and pods, of which some never answer."""
    cache = Cache()
    for manifest in (*_services(services), *_pods(services, pods, silent)):
        cache.observe(manifest)
    return cache


def keys_of(services: int) -> Iterator[Key]:
    for each in range(services):
        yield f"team-{each % NAMESPACES}", f"service-{each}"


def _metadata(number: int, name: str, uid: str) -> dict[str, Any]:
    return {
        "namespace": f"team-{number % NAMESPACES}",
        "name": name,
        "uid": f"{uid}-{number}",
        "resourceVersion": str(number + 1),
        "creationTimestamp": SINCE,
    }


def _services(number: int) -> Iterator[Manifest]:
    for each, (namespace, name) in enumerate(keys_of(number)):
        made = make_service(name, namespace)
        spec = {
            **made["spec"],
            "autoscaling": {"maxReplicas": 10},
            "slo": {"ttftMilliseconds": 2000, "itlMilliseconds": 50},
        }
        metadata = {**_metadata(each, name, "service"), "generation": 1}
        yield {**made, "metadata": metadata, "spec": spec, "status": {"replicas": 2}}


def _pods(services: int, number: int, silent: int) -> Iterator[Manifest]:
    for each in range(number):
        service = each % services
        name = f"service-{service}"
        labels = {names.SERVICE_LABEL: name, names.MANAGED_BY_LABEL: names.FIELD_MANAGER}
        metadata = {
            **_metadata(service, f"{name}-{each}", "pod"),
            "uid": f"pod-{each}",
            "labels": labels,
        }
        container = {
            "name": "server",
            "resources": {"limits": {"nvidia.com/gpu": "1"}},
            "startupProbe": {"httpGet": {"path": "/startupz", "port": 9090}, "periodSeconds": 5},
        }
        state = {"name": "server", "ready": True, "restartCount": 0, "image": "server:1"}
        status = {
            "phase": "Running",
            "podIP": address_of(each, answers=each >= silent),
            "startTime": SINCE,
            "conditions": [
                {"type": it, "status": "True", "lastTransitionTime": SINCE} for it in CONDITIONS
            ],
            "containerStatuses": [{**state, "state": {"running": {"startedAt": SINCE}}}],
        }
        spec = {"nodeName": f"node-{each % 500}", "containers": [container]}
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": spec,
            "status": status,
        }

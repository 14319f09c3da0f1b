"""The services of a measurement, and a substitute for the kubelet."""

from collections.abc import Mapping
from typing import Any

from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Context, build_all
from llmservice_operator.kinds import LLMSERVICES, PODS, Kind, kind_of
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import resolve_pin
from operator_bench.client import BenchError, Client, Key, Manifest
from operator_support.processes import make_service

NAMESPACES = 10
"""Number of namespaces over which the services are spread."""
AUTOSCALED_SHARE = 16
"""One in this many services has an autoscaler."""


def keys(size: int) -> list[Key]:
    """Return the namespace and name of each service of a measurement."""
    return [(f"bench-{size}-{number % NAMESPACES}", f"llm-{number}") for number in range(size)]


def build_service(number: int, key: Key) -> Manifest:
    autoscaling = {"autoscaling": {"maxReplicas": 2}} if number % AUTOSCALED_SHARE == 0 else {}
    namespace, name = key
    return make_service(name, namespace, networkPolicy=clients_of(0), **autoscaling)


def clients_of(round_: int) -> dict[str, Any]:
    """Return the value of `networkPolicy` for a round. A new value changes one child and replaces
    no pod.
    """
    return {"from": [{"podSelector": {"matchLabels": {"round": str(round_)}}}]}


def round_of(network_policy: Manifest) -> str | None:
    """Return the round that a live NetworkPolicy contains. None if it contains none."""
    for rule in network_policy["spec"].get("ingress", ()):
        for peer in rule.get("from", ()):
            labels = peer.get("podSelector", {}).get("matchLabels", {})
            if "round" in labels:
                return str(labels["round"])
    return None


def children_of(stored: Manifest) -> list[Manifest]:
    """Return the children that the operator makes for a stored service."""
    settings, service = OperatorSettings(), LLMService.parse(stored)
    return build_all(Context.of(service, settings, resolve_pin(service, None, settings)))


def kinds_of_children(key: Key) -> frozenset[Kind]:
    """Return all kinds of children in the bench: those of a service with an autoscaler."""
    built = build_service(0, key)
    stored = {**built, "metadata": {**built["metadata"], "uid": "none-yet"}}
    return frozenset(map(kind_of, children_of(stored)))


def has_ready_replica(service: Manifest) -> bool:
    status: Mapping[str, Any] = service.get("status", {})
    is_observed = status.get("observedGeneration") == service["metadata"]["generation"]
    return bool(is_observed and status.get("readyReplicas", 0) >= 1)


async def make_ready(client: Client, pod: Key) -> None:
    """Report the pod as ready, as its kubelet would."""
    conditions = [{"type": type_, "status": "True"} for type_ in ("Ready", "PodScheduled")]
    status = {"phase": "Running", "conditions": conditions}
    try:
        await client.merge(PODS, pod, {"status": status}, "status")
    except BenchError as error:
        if error.status != 404:  # the pod may be gone already
            raise


async def create(client: Client, number: int, key: Key) -> Manifest:
    return await client.send("POST", LLMSERVICES.path(key[0]), build_service(number, key))

"""Reads the objects of a service with kubectl."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

from llmservice_operator import api, names
from llmservice_operator.api import Manifest
from llmservice_operator.kubectl_plugin.kubectl import Kubectl, KubectlFailed, NotFound

SERVICES: Final = f"{api.PLURAL}.{api.GROUP}"


def read_service(kubectl: Kubectl, name: str) -> Manifest:
    """Return an LLMService. Raises KubectlFailed, and NotFound with the command that lists all."""
    try:
        return kubectl.read(SERVICES, name)
    except NotFound as error:
        raise NotFound(
            f"{error}: name another namespace with -n, or see all with `kubectl get llm -A`"
        ) from error


def read_replicas(kubectl: Kubectl, name: str) -> list[Manifest]:
    """Return the pods of a service's replicas. Raises KubectlFailed."""
    return kubectl.items("pods", "--selector", f"{names.SERVICE_LABEL}={name}")


def read_router_pods(kubectl: Kubectl, name: str) -> list[Manifest]:
    """Return the router pods of a service. Raises KubectlFailed."""
    return kubectl.items("pods", "--selector", f"{names.ROUTER_LABEL}={name}")


def read_service_and_replicas(kubectl: Kubectl, name: str) -> tuple[Manifest, list[Manifest]]:
    """Return an LLMService and the pods of its replicas. Raises KubectlFailed."""
    with ThreadPoolExecutor(2) as pool:
        service = pool.submit(read_service, kubectl, name)
        replicas = pool.submit(read_replicas, kubectl, name)
        return service.result(), replicas.result()


def is_metrics_server(pod: Manifest) -> bool:
    """Return whether a pod belongs to the metrics server of a release."""
    labels = pod["metadata"].get("labels", {})
    return bool(labels.get(names.COMPONENT_LABEL) == names.METRICS_SERVER_COMPONENT)


def read_metrics_servers(kubectl: Kubectl, service: Manifest) -> tuple[list[Manifest], str | None]:
    """Return the running pods of the metrics server of the service's operator.

    If there are none, the second value says why.
    """
    operators = service.get("status", {}).get("operators") or ()
    if not operators:
        return [], "the status names no operator"
    namespace = str(operators[0]).partition("/")[0]
    selector = f"{names.COMPONENT_LABEL}={names.METRICS_SERVER_COMPONENT}"
    try:
        pods = kubectl.items("pods", "--namespace", namespace, "--selector", selector)
    except KubectlFailed as error:
        return [], f"the pods of the metrics server cannot be read: {error}"
    running = [each for each in pods if each.get("status", {}).get("phase") == "Running"]
    return running, None if running else f"no metrics server runs in the namespace {namespace}"

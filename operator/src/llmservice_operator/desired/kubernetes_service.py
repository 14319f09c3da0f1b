"""The Service object through which clients reach the model servers."""

from __future__ import annotations

from typing import Any

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.access import ServiceObject
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.manifest import build_metadata


def build_kubernetes_service(service: LLMService) -> Manifest:
    """Build the Service object; the management port is never in it."""
    wanted = service.spec.service
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": build_metadata(service, names.kubernetes_service(service), wanted.annotations),
        "spec": {
            "type": wanted.type,
            "selector": names.selector(service),
            **_from_outside(wanted),
            "ports": [
                {
                    # Service meshes know the protocol by this name. appProtocol would say the same,
                    # but has Azure's load balancers ask / for health, which is no route of ours.
                    "name": names.SERVICE_PORT_NAME,
                    "port": wanted.port,
                    "protocol": "TCP",
                    "targetPort": names.API_PORT_NAME,
                }
            ],
        },
    }


def _from_outside(wanted: ServiceObject) -> dict[str, Any]:
    fields = {
        "externalTrafficPolicy": wanted.external_traffic_policy,
        "loadBalancerSourceRanges": list(wanted.load_balancer_source_ranges),
    }
    # What is unset is not sent: the API server decides it, and clears it with the type.
    return {name: value for name, value in fields.items() if value}

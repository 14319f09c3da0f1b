"""The Service object through which clients reach the model servers."""

from __future__ import annotations

from llmservice_operator import names
from llmservice_operator.api import Manifest
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
            "ports": [
                {
                    "name": names.SERVICE_PORT_NAME,
                    "port": wanted.port,
                    "protocol": "TCP",
                    "targetPort": names.API_PORT_NAME,
                }
            ],
        },
    }

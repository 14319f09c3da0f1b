"""The InferencePool through which Gateways ask the router pods for a replica."""

from __future__ import annotations

from typing import Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.children.child import Child, Context
from llmservice_operator.kinds import INFERENCE_POOLS, SERVICES
from llmservice_operator.workload import workload_of


def _pool(context: Context) -> Manifest | None:
    service = context.service
    if not context.router.has_pool:
        return None
    return {
        "spec": {
            "selector": {"matchLabels": dict(workload_of(service).server_selector(service))},
            "targetPorts": [{"number": names.API_PORT}],
            "endpointPickerRef": {
                "group": "",
                "kind": "Service",
                "name": names.pickers(service),
                "port": {"number": names.ROUTER_GATEWAY_PORT},
                # Without a router pod, the Gateway itself chooses a replica.
                "failureMode": "FailOpen",
            },
        }
    }


def _pickers(context: Context) -> Manifest | None:
    if not context.router.has_pool:
        return None
    return {
        "spec": {
            "type": "ClusterIP",
            "selector": names.router_selector(context.service),
            "ports": [
                {
                    "name": names.GATEWAY_PORT_NAME,
                    "port": names.ROUTER_GATEWAY_PORT,
                    "protocol": "TCP",
                    "targetPort": names.GATEWAY_PORT_NAME,
                    "appProtocol": "http2",
                }
            ],
        }
    }


CHILDREN: Final = (
    Child(kind=SERVICES, body=_pickers, name=names.pickers, is_pruned=True),
    Child(
        kind=INFERENCE_POOLS,
        body=_pool,
        name=names.inference_pool,
        is_pruned=True,
        is_optional_api=True,
    ),
)

"""The headless Service objects through which router pods find the replicas and each other.

Both contain the addresses of pods that are not ready, because a router learns from each pod itself
whether it can use the pod.
"""

from __future__ import annotations

from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.children.child import Child, Context
from llmservice_operator.kinds import SERVICES
from llmservice_operator.workload import workload_of


def _replicas(context: Context) -> Manifest | None:
    if not context.router.exists:
        return None
    selector = workload_of(context.service).server_selector(context.service)
    ports = {
        names.SERVICE_PORT_NAME: names.API_PORT,
        names.MANAGEMENT_PORT_NAME: names.MANAGEMENT_PORT,
    }
    return _headless(dict(selector), ports)


def _router_pods(context: Context) -> Manifest | None:
    if not context.router.exists:
        return None
    ports = {
        names.PICKER_PORT_NAME: names.ROUTER_PICKER_PORT,
        names.MANAGEMENT_PORT_NAME: names.MANAGEMENT_PORT,
    }
    return _headless(names.router_selector(context.service), ports)


def _headless(selector: dict[str, str], ports: dict[str, int]) -> dict[str, Any]:
    return {
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": selector,
            "ports": [
                {"name": name, "port": port, "protocol": "TCP", "targetPort": port}
                for name, port in ports.items()
            ],
        }
    }


CHILDREN: Final = (
    Child(kind=SERVICES, body=_replicas, name=names.replica_addresses, is_pruned=True),
    Child(kind=SERVICES, body=_router_pods, name=names.router, is_pruned=True),
)

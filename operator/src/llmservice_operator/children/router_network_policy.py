"""Network access to and from a service's router pods.

All clients of the service may reach them. They reach DNS, the replicas and each other.
"""

from __future__ import annotations

from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.children.child import Child, Context
from llmservice_operator.children.network_policy import (
    TO_RESOLVERS,
    build_ingress,
    router_pods,
    tcp,
    tunnel_ports,
)
from llmservice_operator.kinds import NETWORK_POLICIES


def _body(context: Context) -> Manifest | None:
    service = context.service
    if not context.router.exists or not service.spec.network_policy.enabled:
        return None
    has_pool = context.router.has_pool
    port = names.ROUTER_GATEWAY_PORT if has_pool else names.API_PORT
    replicas = {"podSelector": {"matchLabels": names.selector(service)}}

    def picker_ports() -> list[dict[str, Any]]:
        return [tcp(names.ROUTER_PICKER_PORT), *tunnel_ports(service)]

    return {
        "spec": {
            "podSelector": {"matchLabels": names.router_selector(service)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                *build_ingress(service, context.settings, port),
                {"from": [router_pods(service)], "ports": picker_ports()},
            ],
            "egress": [
                TO_RESOLVERS,
                {
                    "to": [replicas],
                    "ports": [
                        # Gateways send the requests themselves.
                        *([] if has_pool else [tcp(names.API_PORT)]),
                        tcp(names.MANAGEMENT_PORT),
                        *tunnel_ports(service),
                    ],
                },
                {"to": [router_pods(service)], "ports": picker_ports()},
            ],
        }
    }


CHILD: Final = Child(kind=NETWORK_POLICIES, body=_body, name=names.router, is_pruned=True)

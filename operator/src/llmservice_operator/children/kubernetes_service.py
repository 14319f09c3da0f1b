"""The Service object through which clients reach the router, or else the model servers."""

from __future__ import annotations

from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.access import ServiceObject
from llmservice_operator.children.child import Child, Context
from llmservice_operator.kinds import SERVICES
from llmservice_operator.workload import workload_of


def _body(context: Context) -> Manifest:
    """Return a body that opens the API port. The management port is never in a Service object."""
    spec = context.service.spec.service
    return {
        "spec": {
            "type": spec.type,
            "selector": _selector(context),
            **_from_outside(spec),
            "ports": [
                {
                    # Service meshes recognize the protocol by this name. appProtocol would also
                    # declare it, but makes Azure's load balancers probe the path /, which is not
                    # served.
                    "name": names.SERVICE_PORT_NAME,
                    "port": spec.port,
                    "protocol": "TCP",
                    "targetPort": names.API_PORT_NAME,
                    **({} if spec.node_port is None else {"nodePort": spec.node_port}),
                }
            ],
        },
    }


def _selector(context: Context) -> dict[str, str]:
    service = context.service
    if context.router.takes_requests:
        return names.router_selector(service)
    return dict(workload_of(service).server_selector(service))


def _from_outside(spec: ServiceObject) -> dict[str, Any]:
    fields = {
        "externalTrafficPolicy": spec.external_traffic_policy,
        "loadBalancerClass": spec.load_balancer_class,
        "loadBalancerSourceRanges": list(spec.load_balancer_source_ranges),
    }
    # Unset fields are not sent, because the API server sets their defaults, and clears them when
    # the type changes.
    return {name: value for name, value in fields.items() if value}


CHILD: Final = Child(
    kind=SERVICES,
    body=_body,
    name=names.kubernetes_service,
    annotations=lambda context: context.service.spec.service.annotations,
)

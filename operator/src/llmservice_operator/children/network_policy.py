"""Network access to and from a service's pods.

NetworkPolicies do not apply to traffic between a pod and its own node, which Kubernetes always
allows. The kubelet's probes therefore need no rule, except in an ambient mesh, which changes their
source address.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.network import (
    ALIBABA_METADATA,
    LINK_LOCAL_V4,
    LINK_LOCAL_V6,
    METADATA_V4,
    METADATA_V6,
    DestinationBlock,
    NetworkPolicyDestination,
    is_part,
    is_within,
)
from llmservice_operator.api.object_store import ObjectStore
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children.child import Child, Context
from llmservice_operator.kinds import NETWORK_POLICIES
from llmservice_operator.settings import OperatorSettings

_RESOLVERS: Final = [
    # The resolver may be a pod, or a cache on the node with a link-local address. On Google Cloud,
    # it may have the address of the metadata service, 169.254.169.254. Clouds issue the node's
    # credentials at port 80 of that address only, and the ports of DNS do not include it.
    {"ipBlock": {"cidr": "0.0.0.0/0", "except": [ALIBABA_METADATA]}},
    {"ipBlock": {"cidr": "::/0", "except": list(METADATA_V6)}},
    # In some network plugins, an ipBlock does not match the addresses of pods.
    {"namespaceSelector": {}},
]
_DNS_PORTS: Final = [
    {"port": port, "protocol": protocol}
    # Policies apply to the port of the resolver's pod, which is 5353 on OpenShift.
    for port in (53, 5353)
    for protocol in ("UDP", "TCP")
]
_PRIVATE_V4: Final = (
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.168.0.0/16",
    # These ranges are not reserved for private networks, but some clouds assign them to pods.
    "198.18.0.0/15",
    "240.0.0.0/4",
)
_PRIVATE_V6: Final = ("fc00::/7",)
_PUBLIC: Final = [
    # The hub, the hosts to which it redirects downloads, and the object stores of clouds have
    # public addresses that change. Private addresses are excluded. Otherwise a client could reach
    # the cluster's own services through a URL in a request, which the server fetches.
    {"ipBlock": {"cidr": "0.0.0.0/0", "except": [LINK_LOCAL_V4, *_PRIVATE_V4]}},
    {"ipBlock": {"cidr": "::/0", "except": [LINK_LOCAL_V6, *_PRIVATE_V6]}},
]
_ANY_ADDRESS: Final = [
    {"ipBlock": {"cidr": "0.0.0.0/0", "except": [LINK_LOCAL_V4, ALIBABA_METADATA]}},
    {"ipBlock": {"cidr": "::/0", "except": [*METADATA_V6, LINK_LOCAL_V6]}},
    {"namespaceSelector": {}},
]
TO_RESOLVERS: Final = {"to": _RESOLVERS, "ports": _DNS_PORTS}
"""Egress rule for DNS."""
_PROXY_VARIABLES: Final = ("HTTP_PROXY", "HTTPS_PROXY")
_TUNNEL_PORT: Final = 15008
"""Port at which other pods reach a pod in an ambient mesh. The proxy of the pod's node accepts the
connections."""
_AMBIENT_PROBES: Final = [
    {"ipBlock": {"cidr": "169.254.7.127/32"}},
    {"ipBlock": {"cidr": "fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128"}},
]
"""Source addresses that an ambient mesh gives to the kubelet's probes, so that the probes bypass
its proxy. The network plugin does not recognize them as addresses of the node."""
_BARRED: Final = (LINK_LOCAL_V4, LINK_LOCAL_V6, *METADATA_V4, *METADATA_V6)
"""Addresses that stay closed if a larger range of `networkPolicy.to` includes them."""


def _body(context: Context) -> Manifest | None:
    """Return a policy that allows only the traffic that serving needs; None if it is disabled."""
    service, settings = context.service, context.settings
    if not service.spec.network_policy.enabled:
        return None
    tunnel = tunnel_ports(service)
    router = context.router
    clients = [router_pods(service)] if router.is_only_client else _clients(service)
    observers = [*_observers(settings), *([router_pods(service)] if router.exists else [])]
    return {
        "spec": {
            "podSelector": {"matchLabels": names.selector(service)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": _ingress(service, clients, observers),
            "egress": [
                TO_RESOLVERS,
                *_to_model_sources(service, settings),
                *_to_proxies(service),
                *(_to_destination(each, tunnel) for each in service.spec.network_policy.to),
            ],
        },
    }


def build_ingress(
    service: LLMService, settings: OperatorSettings, port: int = names.API_PORT
) -> list[dict[str, Any]]:
    """Return the ingress rules for pods that all clients of a service may reach at this port."""
    return _ingress(service, _clients(service), _observers(settings), port)


def router_pods(service: LLMService) -> dict[str, Any]:
    """Return the peer that selects the service's router pods."""
    return {"podSelector": {"matchLabels": names.router_selector(service)}}


def tunnel_ports(service: LLMService) -> list[dict[str, Any]]:
    """Return the port at which pods in an ambient mesh are reached; empty without such a mesh."""
    is_ambient = service.spec.network_policy.mesh == "Ambient"
    return [tcp(_TUNNEL_PORT)] if is_ambient else []


def _ingress(
    service: LLMService,
    clients: list[dict[str, Any]],
    observers: list[dict[str, Any]],
    port: int = names.API_PORT,
) -> list[dict[str, Any]]:
    tunnel, management = tunnel_ports(service), [tcp(names.MANAGEMENT_PORT)]
    return [
        {"from": clients, "ports": [tcp(port), *tunnel]},
        {"from": observers, "ports": [*management, *tunnel]},
        *([{"from": _AMBIENT_PROBES, "ports": management}] if tunnel else []),
    ]


def _clients(service: LLMService) -> list[dict[str, Any]]:
    """Return the peers that may use the API: the service's namespace and the peers in the spec."""
    return [
        {"podSelector": {}},
        *(
            peer.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            for peer in service.spec.network_policy.from_
        ),
    ]


def _observers(settings: OperatorSettings) -> list[dict[str, Any]]:
    """Return the peers that may read the metrics of a model server."""
    metrics_server = {names.COMPONENT_LABEL: names.METRICS_SERVER_COMPONENT}
    observers = [_pods(settings.namespace, metrics_server)]
    # A pod on the host network has the address of its node, and no labels for a policy.
    observers += [{"ipBlock": {"cidr": each}} for each in settings.metrics_server_cidrs]
    if settings.monitoring_namespace is not None:
        observers.append(_pods(settings.monitoring_namespace, settings.monitoring_pod_labels))
    return observers


def _pods(namespace: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "namespaceSelector": {"matchLabels": {names.NAMESPACE_NAME_LABEL: namespace}},
        **({"podSelector": {"matchLabels": dict(labels)}} if labels else {}),
    }


def _to_model_sources(service: LLMService, settings: OperatorSettings) -> list[dict[str, Any]]:
    """Return the egress rules for downloads.

    The list is empty if no model comes from the hub or an object store, or if the pods work
    offline.
    """
    model, endpoints = service.spec.model, []
    if service.spec.downloads:
        endpoints.append(model.hub_endpoint or settings.hub_endpoint)
    if service.spec.is_in_a_store:
        store = model.object_store or ObjectStore()
        endpoints.append(store.endpoint)
        if store.credentials_secret_ref is None:
            # The cloud's token service, which has a public address, exchanges the ServiceAccount's
            # token for credentials.
            endpoints.append(None)
    return [_to_endpoint(each) for each in dict.fromkeys(endpoints)]


def _to_endpoint(endpoint: str | None) -> dict[str, Any]:
    """Return the egress rule for an endpoint; None stands for any public HTTPS server."""
    peers = _PUBLIC if endpoint is None else _ANY_ADDRESS
    return {"to": peers, "ports": [tcp(_port(endpoint or "https://"))]}


def _to_proxies(service: LLMService) -> list[dict[str, Any]]:
    """Return the egress rules for the proxies in the environment variables of the pods.

    The address of a proxy may be a DNS name, which a policy cannot express, so the rule opens the
    proxy's port on any address. A variable with a value from a Secret gets no rule, because the
    operator does not know the value.
    """
    ports = {
        port
        for variable in service.spec.engine.env
        if variable.name.upper() in _PROXY_VARIABLES
        and (port := _proxy_port(variable.value)) is not None
    }
    return [{"to": _ANY_ADDRESS, "ports": [tcp(port) for port in sorted(ports)]}] if ports else []


def _proxy_port(address: str | None) -> int | None:
    """Return the port of a proxy; None without a valid URL."""
    try:
        return _port(address) if address and "://" in address else None
    except ValueError:
        return None


def _to_destination(
    destination: NetworkPolicyDestination, tunnel: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the rule for a destination.

    In an ambient mesh, a pod is reached through its tunnel port.
    """
    peer = destination.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude={"ports"}
    )
    if destination.ip_block is not None:
        exceptions = _exceptions(destination.ip_block)
        if exceptions:
            peer["ipBlock"]["except"] = exceptions
    ports = [each.model_dump(mode="json") for each in destination.ports]
    if ports and destination.ip_block is None:
        ports += tunnel
    return {"to": [peer], **({"ports": ports} if ports else {})}


def _exceptions(block: DestinationBlock) -> list[str]:
    """Return the parts of the range that the user excludes or that are always barred."""
    exceptions = list(block.except_)
    for barred in _BARRED:
        if is_part(barred, block.cidr) and not any(is_within(barred, each) for each in exceptions):
            exceptions.append(barred)
    return exceptions


def _port(url: str) -> int:
    """Return the port of a URL, or the default port of its scheme.

    Raises ValueError if the port is not valid.
    """
    address = urlsplit(url)
    return address.port or (80 if address.scheme == "http" else 443)


def tcp(port: int) -> dict[str, Any]:
    """Return a TCP port in the form that a rule needs."""
    return {"port": port, "protocol": "TCP"}


CHILD: Final = Child(kind=NETWORK_POLICIES, body=_body, is_pruned=True)

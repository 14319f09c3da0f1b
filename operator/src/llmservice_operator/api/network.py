"""spec.networkPolicy: the clients of the API, and the destinations of the model servers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field

from llmservice_operator.api.fields import ATOMIC, Fields, Rule, ValueRule
from llmservice_operator.api.labels import LabelSelector

ALIBABA_METADATA: Final = "100.100.100.200/32"
METADATA_V4: Final = ("169.254.169.254/32", ALIBABA_METADATA)
METADATA_V6: Final = ("fd00:ec2::254/128", "fd20:ce::254/128")
"""Addresses at which clouds serve a node's credentials. The first IPv4 address is that of most
clouds, the second that of Alibaba Cloud. The IPv6 addresses are those of AWS and Google Cloud."""
LINK_LOCAL_V4: Final = "169.254.0.0/16"
LINK_LOCAL_V6: Final = "fe80::/10"
"""Link-local addresses, at which some clouds also issue credentials to containers."""


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Return the network of a text such as 10.0.0.0/8; None for any other text.

    The rules are those of Kubernetes: no leading zeros in the prefix length, and no IPv4 address
    inside IPv6.
    """
    if re.fullmatch("[0-9A-Fa-f:.]+/(0|[1-9][0-9]*)", text) is None:
        return None
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        return None
    is_mapped = isinstance(interface, ipaddress.IPv6Interface) and interface.ip.ipv4_mapped
    return None if is_mapped else interface.network


def _canonical(text: str) -> str:
    """Return a CIDR range as Kubernetes writes it: 10.1.2.3/8 becomes 10.0.0.0/8.

    Newer API servers refuse any other form in new objects; older ones accept it. Both forms contain
    the same addresses.
    """
    network = _network(text)
    return text if network is None else str(network)


Cidr = Annotated[
    str,
    Field(min_length=1, max_length=43),
    ValueRule(
        cel="isCIDR(self)",
        message="must be a CIDR range such as 10.0.0.0/8",
        holds=lambda text: _network(text) is not None,
    ),
    AfterValidator(_canonical),
]


def is_within(cidr: str, whole: str) -> bool:
    """Return whether `whole` contains every address of `cidr`."""
    inner, outer = _network(cidr), _network(whole)
    return (
        inner is not None
        and outer is not None
        and inner.version == outer.version
        and inner.subnet_of(outer)  # type: ignore[arg-type]
    )


def is_part(cidr: str, whole: str) -> bool:
    """Return whether `whole` contains `cidr` and is larger. Each range in `except` must be such a
    part of its block.
    """
    return is_within(cidr, whole) and not is_within(whole, cidr)


class IPBlock(Fields):
    cidr: Cidr
    """Client addresses that may reach the API, such as 10.0.0.0/8. For clients outside the cluster,
    set service.externalTrafficPolicy: Local; otherwise the policy sees a node's address instead of
    the client's."""
    except_: Annotated[
        tuple[Cidr, ...],
        Field(
            alias="except",
            max_length=16,
            json_schema_extra=ATOMIC,
        ),
    ] = ()
    """Parts of cidr to exclude."""

    rules: ClassVar = (
        Rule(
            "except",
            cel="!has(self.except) || !isCIDR(self.cidr) || self.except.all(part, !isCIDR(part) || "
            "(cidr(self.cidr).containsCIDR(part) && "
            "cidr(self.cidr).prefixLength() < cidr(part).prefixLength()))",
            message="must be parts of cidr, each smaller than the whole",
            holds=lambda block: all(is_part(each, block.cidr) for each in block.except_),
        ),
    )


class NetworkPolicyPeer(Fields):
    pod_selector: LabelSelector | None = None
    """Pods with these labels; {} selects all pods. Without namespaceSelector, only pods in the
    LLMService's namespace are selected."""
    namespace_selector: LabelSelector | None = None
    """Namespaces with these labels; {} selects all namespaces. Without podSelector, all pods in
    these namespaces are selected."""
    ip_block: IPBlock | None = None
    """Range of addresses, for clients outside the cluster."""

    rules: ClassVar = (
        Rule(
            "ipBlock",
            cel="has(self.ipBlock) != (has(self.podSelector) || has(self.namespaceSelector))",
            message="must be set alone: a peer is either an ipBlock, or pods selected by "
            "podSelector, namespaceSelector or both",
            holds=lambda peer: (
                (peer.ip_block is not None)
                != (peer.pod_selector is not None or peer.namespace_selector is not None)
            ),
        ),
    )


_MetadataFreeCidr = Annotated[
    Cidr,
    ValueRule(
        cel=f"!isCIDR(self) || !{[*METADATA_V4, *METADATA_V6]}"
        ".exists(service, cidr(service).containsCIDR(self))",
        message="is the metadata service of a cloud, which serves the node's credentials: "
        "remove it",
        holds=lambda text: not any(is_within(text, each) for each in (*METADATA_V4, *METADATA_V6)),
    ),
    ValueRule(
        cel=f"!isCIDR(self) || !{[LINK_LOCAL_V4, LINK_LOCAL_V6]}"
        ".exists(range, cidr(range) == cidr(self).masked())",
        message="is the whole link-local range, in which some clouds serve credentials: write only "
        "the addresses that the replicas need",
        holds=lambda text: _canonical(text) not in (LINK_LOCAL_V4, LINK_LOCAL_V6),
    ),
]


class DestinationBlock(IPBlock):
    cidr: _MetadataFreeCidr
    """Addresses that the replicas may reach, such as 10.0.0.0/8. The metadata services of clouds
    are always excluded. Link-local addresses are also excluded, unless the range is a part of
    169.254.0.0/16 or fe80::/10."""


class DestinationPort(Fields):
    port: Annotated[int, Field(ge=1, le=65535)]
    """Port number."""
    protocol: Literal["TCP", "UDP"] = "TCP"
    """Transport protocol. Default: TCP."""


class NetworkPolicyDestination(NetworkPolicyPeer):
    ip_block: DestinationBlock | None = None
    """Range of addresses, for destinations outside the cluster."""
    ports: Annotated[
        tuple[DestinationPort, ...],
        Field(max_length=8, json_schema_extra=ATOMIC),
    ] = ()
    """Destination ports. For pods, these are the ports of the containers, which can differ from the
    ports of a Service object in front of them. Default: all ports."""


def _without_effect(field: str, peers: Callable[[NetworkPolicy], tuple[Fields, ...]]) -> Rule:
    return Rule(
        field,
        cel=f"self.enabled || !has(self.{field}) || size(self.{field}) == 0",
        message="has no effect without the NetworkPolicy: remove it, or remove enabled: false",
        holds=lambda policy: policy.enabled or not peers(policy),
    )


class NetworkPolicy(Fields):
    enabled: bool = True
    """Whether the operator creates a NetworkPolicy. Without it, the API port and the management
    port are open to the network, and the replicas can reach any address, including the cloud's
    metadata service."""
    from_: Annotated[
        tuple[NetworkPolicyPeer, ...],
        Field(alias="from", max_length=16, json_schema_extra=ATOMIC),
    ] = ()
    """Clients of the API in addition to the pods of the LLMService's namespace, such as a gateway
    in another namespace. If clients come through a load balancer or node port, add their addresses
    as an ipBlock and set service.externalTrafficPolicy: Local, so that the policy sees these
    addresses."""
    to: Annotated[
        tuple[NetworkPolicyDestination, ...],
        Field(max_length=16, json_schema_extra=ATOMIC),
    ] = ()
    """Destinations of the replicas in addition to DNS, the model's source and HTTP proxies, such as
    a trace collector. List a proxy here only if its variable in engine.env gets the address from a
    Secret or ConfigMap."""

    mesh: Literal["None", "Ambient"] = "None"
    """Service mesh of the namespace. None: no mesh, or a mesh with sidecars, which needs no further
    ports. Ambient: the ambient mode of Istio. With Ambient, the policy also allows connections to
    port 15008, the tunnel of the mesh: from every permitted client to the replicas, and from the
    replicas to the pods in `to`. It also allows the probes, which come from an address of the
    mesh."""

    rules: ClassVar = (
        _without_effect("from", lambda policy: policy.from_),
        _without_effect("to", lambda policy: policy.to),
        Rule(
            "mesh",
            cel="self.enabled || self.mesh == 'None'",
            message="has no effect without the NetworkPolicy: remove it, or remove enabled: false",
            holds=lambda policy: policy.enabled or policy.mesh == "None",
        ),
    )

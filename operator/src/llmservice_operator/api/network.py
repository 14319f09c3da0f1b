"""spec.networkPolicy: who may reach the API, and whom the model servers may reach."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule, ValueRule
from llmservice_operator.api.labels import LabelSelector

METADATA_V4: Final = ("169.254.169.254/32", "100.100.100.200/32")
METADATA_V6: Final = ("fd00:ec2::254/128", "fd20:ce::254/128")
"""Where clouds hand out a node's credentials: most of them; Alibaba; AWS and Google over IPv6."""


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Return the addresses that a text such as 10.0.0.0/8 stands for, None for other texts.

    As Kubernetes reads them: a length without zeros before it, and no IPv4 address inside IPv6.
    """
    if re.fullmatch("[0-9A-Fa-f:.]+/(0|[1-9][0-9]*)", text) is None:
        return None
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        return None
    is_mapped = isinstance(interface, ipaddress.IPv6Interface) and interface.ip.ipv4_mapped
    return None if is_mapped else interface.network


Cidr = Annotated[
    str,
    Field(min_length=1, max_length=43),
    ValueRule(
        cel="isCIDR(self)",
        message="must be a range of addresses such as 10.0.0.0/8",
        holds=lambda text: _network(text) is not None,
    ),
]


def is_within(cidr: str, whole: str) -> bool:
    """Return whether the whole range holds all addresses of the other one."""
    inner, outer = _network(cidr), _network(whole)
    return (
        inner is not None
        and outer is not None
        and inner.version == outer.version
        and inner.subnet_of(outer)  # type: ignore[arg-type]
    )


def is_part(cidr: str, whole: str) -> bool:
    """Return whether the whole range holds it and more: only then it can be an exception."""
    return is_within(cidr, whole) and not is_within(whole, cidr)


class IPBlock(Fields):
    cidr: Cidr
    """Addresses that may reach the API, such as 10.0.0.0/8. Those of clients outside the cluster
    are seen with service.externalTrafficPolicy Local alone; else a node's stands in their place."""
    except_: Annotated[
        tuple[Cidr, ...],
        Field(
            alias="except",
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = ()
    """Parts of it that may not."""

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
    """Pods by their labels; {} means all. Without namespaceSelector, those of the own namespace."""
    namespace_selector: LabelSelector | None = None
    """Namespaces by their labels; {} means all. Without podSelector, all pods in them."""
    ip_block: IPBlock | None = None
    """Addresses, for clients outside the cluster."""

    rules: ClassVar = (
        Rule(
            "ipBlock",
            cel="has(self.ipBlock) != (has(self.podSelector) || has(self.namespaceSelector))",
            message="stands alone: a peer is an ipBlock, or pods chosen with podSelector, "
            "namespaceSelector or both",
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
        message="is the metadata service of a cloud, which hands out the node's credentials: "
        "remove it",
        holds=lambda text: not any(is_within(text, each) for each in (*METADATA_V4, *METADATA_V6)),
    ),
]


class DestinationBlock(IPBlock):
    cidr: _MetadataFreeCidr
    """Addresses that the replicas may reach, such as 10.0.0.0/8. The metadata services of clouds
    are never among them, even if the range holds them, nor are link-local addresses in a range
    that is wider than theirs."""


class DestinationPort(Fields):
    port: Annotated[int, Field(ge=1, le=65535)]
    """Number of the port."""
    protocol: Literal["TCP", "UDP"] = "TCP"
    """What is spoken over it."""


class NetworkPolicyDestination(NetworkPolicyPeer):
    ip_block: DestinationBlock | None = None
    """Addresses, for what is outside the cluster."""
    ports: Annotated[
        tuple[DestinationPort, ...],
        Field(max_length=8, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Ports there: those of the pods, which may differ from that of a Service before them.
    Default: every port."""


def _without_effect(field: str, peers: Callable[[NetworkPolicy], tuple[Fields, ...]]) -> Rule:
    return Rule(
        field,
        cel=f"self.enabled || !has(self.{field}) || size(self.{field}) == 0",
        message="has no effect without the NetworkPolicy: remove it, or enabled: false",
        holds=lambda policy: policy.enabled or not peers(policy),
    )


class NetworkPolicy(Fields):
    enabled: bool = True
    """False makes no NetworkPolicy: whoever the network lets through reaches both ports, and the
    replicas reach whom they like, the cloud's metadata service too."""
    from_: Annotated[
        tuple[NetworkPolicyPeer, ...],
        Field(alias="from", max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Who may reach the API beside the pods of the LLMService's own namespace, such as a gateway in
    another one. A load balancer or node port needs the addresses of its clients here, as an
    ipBlock, and service.externalTrafficPolicy Local so that the policy sees them."""
    to: Annotated[
        tuple[NetworkPolicyDestination, ...],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Whom the replicas may reach besides DNS and the model's source, such as the proxy of an
    HTTPS_PROXY, an object store or a collector of traces."""

    rules: ClassVar = (
        _without_effect("from", lambda policy: policy.from_),
        _without_effect("to", lambda policy: policy.to),
    )

"""spec.networkPolicy: who may reach the API."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, ClassVar

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule, ValueRule
from llmservice_operator.api.labels import LabelSelector


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


def _holds_its_exceptions(block: IPBlock) -> bool:
    whole = _network(block.cidr)
    parts = [_network(each) for each in block.except_]
    return whole is not None and all(
        part is not None
        and part.version == whole.version
        and part.prefixlen > whole.prefixlen
        and part.subnet_of(whole)  # type: ignore[arg-type]
        for part in parts
    )


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
            holds=_holds_its_exceptions,
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


class NetworkPolicy(Fields):
    enabled: bool = True
    """False makes no NetworkPolicy: whoever the network lets through reaches both ports."""
    from_: Annotated[
        tuple[NetworkPolicyPeer, ...],
        Field(alias="from", max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Who may reach the API beside the pods of the LLMService's own namespace, such as a gateway in
    another one. A load balancer or node port needs the addresses of its clients here, as an
    ipBlock, and service.externalTrafficPolicy Local so that the policy sees them."""

    rules: ClassVar = (
        Rule(
            "from",
            cel="self.enabled || !has(self.from) || size(self.from) == 0",
            message="has no effect without the NetworkPolicy: remove it, or enabled: false",
            holds=lambda policy: policy.enabled or not policy.from_,
        ),
    )

"""Evaluates a set of NetworkPolicies by the rules of networking.k8s.io/v1.

The functions are pure: they read only manifests, and use no network plugin.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Policy = Mapping[str, Any]


@dataclass(frozen=True)
class Host:
    """An endpoint of a connection. It has an address, and a pod also has a namespace."""

    address: str
    namespace: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


def may_connect(
    policies: Sequence[Policy], source: Host, target: Host, port: int, protocol: str = "TCP"
) -> bool:
    """Return whether the policies of the source and of the target allow the connection."""
    return _passes(policies, "Egress", source, target, port, protocol) and _passes(
        policies, "Ingress", target, source, port, protocol
    )


def _passes(
    policies: Sequence[Policy], direction: str, subject: Host, peer: Host, port: int, protocol: str
) -> bool:
    binding = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == subject.namespace
        and direction in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], subject.labels)
    ]
    if not binding:
        return True
    return any(
        _names_port(rule.get("ports", []), port, protocol)
        and _names_peer(rule.get("from", rule.get("to", [])), policy, peer)
        for policy in binding
        for rule in policy["spec"].get(direction.lower(), [])
    )


def _names_port(ports: Sequence[Mapping[str, Any]], port: int, protocol: str) -> bool:
    return not ports or any(
        each["port"] == port and each.get("protocol", "TCP") == protocol for each in ports
    )


def _names_peer(peers: Sequence[Mapping[str, Any]], policy: Policy, host: Host) -> bool:
    return not peers or any(_is_peer(each, policy, host) for each in peers)


def _is_peer(peer: Mapping[str, Any], policy: Policy, host: Host) -> bool:
    if block := peer.get("ipBlock"):
        return _within(host.address, block["cidr"]) and not any(
            _within(host.address, each) for each in block.get("except", [])
        )
    if host.namespace is None:
        return False
    if "namespaceSelector" in peer:
        in_namespace = _selects(peer["namespaceSelector"], host.namespace_labels)
    else:
        in_namespace = host.namespace == policy["metadata"]["namespace"]
    return in_namespace and _selects(peer.get("podSelector", {}), host.labels)


def _within(address: str, cidr: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr, strict=False)


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    def meets(requirement: Mapping[str, Any]) -> bool:
        value = labels.get(requirement["key"])
        match requirement["operator"]:
            case "In":
                return value in requirement["values"]
            case "NotIn":
                return value not in requirement["values"]
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case operator:
                raise ValueError(operator)

    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        map(meets, selector.get("matchExpressions", []))
    )

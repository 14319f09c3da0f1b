"""spec.service and spec.auth: how clients reach the API and what they must bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule, ValueRule
from llmservice_operator.api.labels import KEYS_ARE_VALID
from llmservice_operator.api.network import Cidr
from llmservice_operator.api.references import ApiKeysSecret

_SOURCE_RANGES: Final = "service.beta.kubernetes.io/load-balancer-source-ranges"
"""The annotation that the field came after. The API server reads it still, and refuses the Service
object for what is wrong in it."""


class ServiceObject(Fields):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Who can reach the API: ClusterIP is the cluster alone, NodePort adds a port on every node,
    LoadBalancer an address from the cloud. The management port stays inside in any case."""
    port: Annotated[int, Field(ge=1, le=65535)] = 80
    """Port on which clients find the API."""
    annotations: Annotated[
        Mapping[str, Annotated[str, Field(max_length=4096)]],
        Field(max_length=32),
        KEYS_ARE_VALID,
        ValueRule(
            cel=f"!('{_SOURCE_RANGES}' in self)",
            message=f"{_SOURCE_RANGES} has a field of its own: set "
            "service.loadBalancerSourceRanges instead",
            holds=lambda annotations: _SOURCE_RANGES not in annotations,
        ),
    ] = Field(default_factory=dict)
    """Annotations of the Service object, with which clouds configure load balancers."""
    external_traffic_policy: Literal["Cluster", "Local"] | None = None
    """How a node passes on what reaches it from outside the cluster. Local gives it to the replicas
    on that node alone and keeps the client's address, which a NetworkPolicy needs to tell clients
    apart: set it when networkPolicy.from lists an ipBlock. Cluster spreads evenly over all
    replicas, which then see a node's address. Default: Cluster, as in Kubernetes."""
    load_balancer_source_ranges: Annotated[
        tuple[Cidr, ...],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Addresses that the load balancer lets in, such as 198.51.100.0/24, where the cloud can do so.
    The NetworkPolicy stands behind it: list them in networkPolicy.from as well. Default: all."""

    rules: ClassVar = (
        Rule(
            "externalTrafficPolicy",
            cel="!has(self.externalTrafficPolicy) || self.type != 'ClusterIP'",
            message="belongs to the types NodePort and LoadBalancer only: remove it, or choose one "
            "of these types",
            holds=lambda service: (
                service.external_traffic_policy is None or service.type != "ClusterIP"
            ),
        ),
        Rule(
            "loadBalancerSourceRanges",
            cel="!has(self.loadBalancerSourceRanges) || size(self.loadBalancerSourceRanges) == 0 "
            "|| self.type == 'LoadBalancer'",
            message="belongs to the type LoadBalancer only: remove it, or choose this type",
            holds=lambda service: (
                not service.load_balancer_source_ranges or service.type == "LoadBalancer"
            ),
        ),
    )


class Auth(Fields):
    api_keys_secret_ref: ApiKeysSecret
    """The Secret with the API keys, one of which every request must bring as `Authorization: Bearer
    KEY`. It is mounted and read again when it changes: to rotate, add a key, move the clients, and
    remove the old one; no pod restarts. Without the Secret no pod becomes ready."""

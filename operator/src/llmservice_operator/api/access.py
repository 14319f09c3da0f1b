"""spec.service and spec.auth: access of clients to the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from llmservice_operator.api.fields import ATOMIC, Fields, Rule, keyed_by, matches
from llmservice_operator.api.labels import (
    KEY_LENGTH,
    KEY_PATTERN,
    KEYS_ARE_VALID,
    SOURCE_RANGES_HAVE_A_FIELD,
)
from llmservice_operator.api.network import Cidr
from llmservice_operator.api.references import ApiKeysSecret, ObjectName


class Tls(Fields):
    secret_name: ObjectName
    """Name of a Secret of type kubernetes.io/tls in the LLMService's namespace, with the keys
    tls.crt and tls.key. The router reads it again when it changes, without a restart. While the
    Secret does not exist, router pods do not start."""


class ServiceObject(Fields):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Exposure of the API. ClusterIP: inside the cluster only. NodePort: also on a port of every
    node. LoadBalancer: also at the address of a load balancer. The management port is never
    exposed."""
    port: Annotated[int, Field(ge=1, le=65535)] = 80
    """Port of the API on the Service object."""
    tls: Tls | None = None
    """Certificate of the API, which then speaks HTTPS only, on the same port. The router ends TLS,
    so setting this field also switches the router on. Connections between the router and the
    replicas stay unencrypted inside the cluster. Set port: 443 as well. Default: plain HTTP."""
    node_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the API on every node, for firewalls and external load balancers that need a fixed
    port. The port must be free, and in the cluster's range for node ports, usually 30000 to 32767.
    Default: with type NodePort or LoadBalancer, a port that the cluster chooses."""
    load_balancer_class: (
        Annotated[
            str,
            Field(min_length=1, max_length=KEY_LENGTH),
            matches(
                KEY_PATTERN,
                "must be the class of a load balancer implementation, such as "
                "service.k8s.aws/nlb or internal-vip",
            ),
        ]
        | None
    ) = None
    """Implementation that provides the load balancer, if the cluster has several. The field cannot
    be changed while the type is LoadBalancer. Default: the cluster's default implementation."""
    annotations: Annotated[
        Mapping[str, Annotated[str, Field(max_length=4096)]],
        Field(max_length=32),
        KEYS_ARE_VALID,
        SOURCE_RANGES_HAVE_A_FIELD,
    ] = Field(default_factory=dict)
    """Annotations of the Service object, such as those that configure a cloud's load balancer."""
    external_traffic_policy: Literal["Cluster", "Local"] | None = None
    """Routing of traffic that reaches a node from outside the cluster. Cluster: to all replicas,
    which see the node's address instead of the client's. Local: only to replicas on that node,
    which see the client's address. A NetworkPolicy needs the client's address, so set Local when
    networkPolicy.from lists an ipBlock. Default: Cluster."""
    load_balancer_source_ranges: Annotated[
        tuple[Cidr, ...],
        Field(max_length=32, json_schema_extra=ATOMIC),
    ] = ()
    """Client addresses that the load balancer accepts, such as 198.51.100.0/24, if the cloud
    supports such a limit. The NetworkPolicy still applies, so list the addresses in
    networkPolicy.from as well. Default: all addresses."""

    rules: ClassVar = (
        Rule(
            "externalTrafficPolicy",
            cel="!has(self.externalTrafficPolicy) || self.type != 'ClusterIP'",
            message="requires type NodePort or LoadBalancer: remove it, or choose one of these "
            "types",
            holds=lambda service: (
                service.external_traffic_policy is None or service.type != "ClusterIP"
            ),
        ),
        Rule(
            "nodePort",
            cel="!has(self.nodePort) || self.type != 'ClusterIP'",
            message="requires type NodePort or LoadBalancer: remove it, or choose one of these "
            "types",
            holds=lambda service: service.node_port is None or service.type != "ClusterIP",
        ),
        Rule(
            "loadBalancerClass",
            cel="!has(self.loadBalancerClass) || self.type == 'LoadBalancer'",
            message="requires type LoadBalancer: remove it, or choose that type",
            holds=lambda service: (
                service.load_balancer_class is None or service.type == "LoadBalancer"
            ),
        ),
        Rule(
            "loadBalancerSourceRanges",
            cel="!has(self.loadBalancerSourceRanges) || size(self.loadBalancerSourceRanges) == 0 "
            "|| self.type == 'LoadBalancer'",
            message="requires type LoadBalancer: remove it, or choose that type",
            holds=lambda service: (
                not service.load_balancer_source_ranges or service.type == "LoadBalancer"
            ),
        ),
    )


Requests = Annotated[int, Field(ge=1, le=1_000_000)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000_000)]


class ClientLimits(Fields):
    requests_per_minute: Requests | None = None
    """Maximum number of requests in any 60 seconds. Further ones are refused with status 429 and
    the header Retry-After. Default: no limit."""
    tokens_per_minute: Tokens | None = None
    """Maximum number of tokens, of prompts and answers together, of the requests that are sent in
    any 60 seconds. Until a request has ended, its estimated prompt and its max_tokens count. An
    answer without max_tokens counts with its expected length until it has ended, and can exceed
    the limit. Default: no limit."""
    concurrent_requests: Requests | None = None
    """Maximum number of requests in progress at the same time, including those that wait in the
    router. Default: no limit."""


class LimitsOfKey(ClientLimits):
    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the API key: its key in the Secret of apiKeysSecretRef."""


class Limits(ClientLimits):
    """Limits of each API key, unless `keys` sets others."""

    keys: Annotated[
        tuple[LimitsOfKey, ...], Field(max_length=100, json_schema_extra=keyed_by("name"))
    ] = ()
    """Limits of single API keys. A field that is not set here has the value of the limit for all
    keys."""

    def of_key(self, key: LimitsOfKey) -> ClientLimits:
        """Return the limits of a key, with those for all keys where it sets none."""
        set_ = key.model_dump(exclude_none=True, exclude={"name"})
        return ClientLimits(**{**self.model_dump(exclude={"keys"}), **set_})


class Auth(Fields):
    api_keys_secret_ref: ApiKeysSecret
    """Secret with the API keys. Every request except `/health` and `/ping` must carry one of the
    keys, as `Authorization: Bearer KEY` or `x-api-key: KEY`. The replicas read the Secret again
    when it changes. To rotate a key, add a new key, switch the clients to the new key and remove
    the old one; no pod restarts. Without the Secret, a new pod does not become ready."""
    isolate_prefix_cache: bool = False
    """Whether the prefix cache is separate for each API key. With false, a client can infer from
    the latency of its own requests which prompts other clients have sent. With true, a prompt that
    several clients send, such as a system prompt, is computed and stored once for each key. A model
    server that is older than this field ignores it."""
    limits: Limits | None = None
    """Limits of the requests and tokens of each API key. The router applies them, so setting this
    field also switches the router on. Requests that reach the replicas without the router, such as
    those before the router is ready, are not limited. Default: no limits."""


LIMITS_NEED_ROUTER: Final = Rule(
    "auth.limits",
    cel="!has(self.auth) || !has(self.auth.limits) || !has(self.router) || "
    "((!has(self.router.enabled) || self.router.enabled) && self.router.mode == 'Proxy')",
    message="requires the router, which applies the limits: remove router.enabled: false and "
    "router.mode, or remove it",
    holds=lambda spec: (
        not (spec.auth and spec.auth.limits)
        or (spec.router_settings.enabled is not False and spec.router_settings.mode == "Proxy")
    ),
)
"""Rule of the whole spec."""

"""spec.resources and spec.template: the resources and the scheduling of each replica."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from llmservice_operator.api.devices import ExtendedResources, ResourceClaims
from llmservice_operator.api.fields import ATOMIC, Fields, Quantity, Rule, keyed_by, quantity_value
from llmservice_operator.api.labels import (
    KEY_LENGTH,
    KEYS_ARE_VALID,
    Annotations,
    LabelKey,
    Labels,
    LabelValue,
)
from llmservice_operator.api.references import ObjectName
from llmservice_operator.api.scheduling import Affinity, TopologySpreadConstraint

_RESOURCES = {
    # CEL spelling of each field.
    "cpu": "cpu",
    "memory": "memory",
    "ephemeral-storage": "ephemeral__dash__storage",
}


def amount_of(amounts: Fields | None, field: str) -> Decimal | None:
    """Return the amount of one resource; None when it is not set or not a quantity."""
    text = getattr(amounts, field.replace("-", "_"), None)
    return None if text is None else quantity_value(text)


class ResourceAmounts(Fields):
    cpu: Quantity | None = None
    """CPU cores, such as 4 or 500m. Quote a number with a fraction, such as "0.5"."""
    memory: Quantity | None = None
    """Memory, such as 32Gi. Shared memory between the engine's processes counts towards it."""
    ephemeral_storage: Annotated[Quantity | None, Field(alias="ephemeral-storage")] = None
    """Disk space on the node for logs and the downloaded model, such as 200Gi."""


def request_within_limit(field: str) -> Rule:
    """Return the rule that the request for a resource is not above its limit."""
    request, limit = (f"self.{part}.{_RESOURCES[field]}" for part in ("requests", "limits"))

    def holds(resources: Any) -> bool:
        asked, allowed = (amount_of(part, field) for part in (resources.requests, resources.limits))
        return asked is None or allowed is None or asked <= allowed

    return Rule(
        "requests",
        cel=f"!has(self.requests) || !has({request}) || !has(self.limits) || !has({limit}) || "
        # A value that is not a quantity is refused by the rule of its field. A comparison would
        # fail with a different message.
        f"!isQuantity(string({request})) || !isQuantity(string({limit})) || "
        f"quantity(string({request})).compareTo(quantity(string({limit}))) <= 0",
        message=f"exceed the limits for {field}: raise limits.{field} or lower requests.{field}",
        holds=holds,
    )


class Resources(Fields):
    requests: ResourceAmounts | None = None
    """Resources that a node must have free for each replica. Default for a resource with a limit:
    the limit. Default without a limit: on GPUs, 1 core per GPU, and 4Gi of memory per GPU plus
    engine.kvCache.offload.cpu; on a CPU, 500m cores and 2Gi of memory; for ephemeral-storage,
    model.cache.size of an Ephemeral cache."""
    limits: ResourceAmounts | None = None
    """Maximum resources of each replica. On a CPU, the memory limit must have room for the weights
    and the KV cache; on GPUs, for the loading buffers. Default: no limits."""
    extended: ExtendedResources = Field(default_factory=dict)
    """Extended resources of each replica by their names, as equal requests and limits: devices,
    such as rdma/hca: 1, and huge pages, such as hugepages-2Mi: 1Gi. GPUs are set in
    spec.accelerator."""
    claims: ResourceClaims = ()
    """Claims of each replica for devices (dynamic resource allocation; requires Kubernetes 1.34),
    such as network adapters. The claim for GPUs is accelerator.resourceClaimTemplateName."""

    rules: ClassVar = tuple(request_within_limit(field) for field in _RESOURCES)


class Toleration(Fields):
    key: LabelKey | None = None
    """Key of the taint. Without a key, operator must be Exists, and taints with any key are
    tolerated."""
    operator: Literal["Exists", "Equal"] | None = None
    """Comparison of the taint's value: Exists tolerates any value, Equal only the given value.
    Default: Equal."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Default: all effects."""
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Time in seconds that a pod stays on a node after the NoExecute taint appears. Default: no
    limit."""

    rules: ClassVar = (
        Rule(
            "operator",
            cel="(has(self.key) && size(self.key) > 0) || "
            "(has(self.operator) && self.operator == 'Exists')",
            message="must be Exists when key is unset: set operator: Exists or key",
            holds=lambda self: bool(self.key) or self.operator == "Exists",
        ),
        Rule(
            "value",
            cel="!has(self.value) || size(self.value) == 0 || !has(self.operator) || "
            "self.operator != 'Exists'",
            message="has no effect with operator Exists: remove it or set operator: Equal",
            holds=lambda self: not self.value or self.operator != "Exists",
        ),
        Rule(
            "tolerationSeconds",
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            message="requires effect NoExecute: set that effect, or remove it",
            holds=lambda self: self.toleration_seconds is None or self.effect == "NoExecute",
        ),
    )

    def covers_every_taint_of(self, key: str) -> bool:
        """Return whether this toleration covers every NoSchedule taint with the key, whatever the
        taint's value.
        """
        return (
            self.operator == "Exists"
            and self.key in (None, key)
            and self.effect in (None, "NoSchedule")
        )


class Template(Fields):
    node_selector: Annotated[
        Mapping[Annotated[str, Field(max_length=KEY_LENGTH)], LabelValue],
        Field(max_length=32),
        KEYS_ARE_VALID,
    ] = Field(default_factory=dict)
    """Labels that a node must have to run a replica."""
    tolerations: Annotated[
        tuple[Toleration, ...],
        Field(max_length=32, json_schema_extra=ATOMIC),
    ] = ()
    """Taints that the replicas tolerate. Replicas on GPUs also tolerate the usual taint of GPU
    nodes: the key is the GPU resource name, such as nvidia.com/gpu, and the effect is
    NoSchedule."""
    affinity: Affinity | None = None
    """Rules for placing the replicas by the labels of nodes and of other pods."""
    topology_spread_constraints: Annotated[
        tuple[TopologySpreadConstraint, ...],
        Field(
            max_length=8,
            json_schema_extra=keyed_by("topologyKey", "whenUnsatisfiable"),
        ),
    ] = ()
    """Rules for spreading the replicas across nodes, zones or other domains."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods. If no node has enough free resources for a pod, the pod may
    preempt pods with a lower priority. Default: the cluster's default class."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods, such as nvidia. Default: the node's default runtime."""
    scheduler_name: ObjectName | None = None
    """Scheduler that places the pods. Default: the cluster's default scheduler."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods, for policies and cloud identities. Its token is not mounted,
    because the model server never calls the API server. If the chart's admission policy is on,
    setting this field, or changing engine.image while this field is set, requires permission to
    create pods. Default: the ServiceAccount `default`."""
    labels: Labels = Field(default_factory=dict)
    """Additional labels of the pods."""
    annotations: Annotations = Field(default_factory=dict)
    """Additional annotations of the pods."""

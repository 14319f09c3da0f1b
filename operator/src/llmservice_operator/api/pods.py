"""spec.resources and spec.template: what each replica may use and where it may run."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmservice_operator.api.fields import Fields, Quantity, Rule, quantity_value
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
    # field: how CEL spells it
    "cpu": "cpu",
    "memory": "memory",
    "ephemeral-storage": "ephemeral__dash__storage",
}


def _amount(amounts: ResourceAmounts | None, field: str) -> Decimal | None:
    """Return the amount of one resource; None when it is not set, or is no quantity."""
    text = getattr(amounts, field.replace("-", "_"), None)
    return None if text is None else quantity_value(text)


class ResourceAmounts(Fields):
    cpu: Quantity | None = None
    """CPU cores, such as 4 or 500m; a number with a fraction in quotes, such as "0.5"."""
    memory: Quantity | None = None
    """Memory, such as 32Gi; shared memory between the engine's processes counts towards it."""
    ephemeral_storage: Annotated[Quantity | None, Field(alias="ephemeral-storage")] = None
    """Disk space on the node for logs and the downloaded model, such as 200Gi."""


def _request_within_limit(field: str) -> Rule:
    request, limit = (f"self.{part}.{_RESOURCES[field]}" for part in ("requests", "limits"))

    def holds(resources: Resources) -> bool:
        asked, allowed = (_amount(part, field) for part in (resources.requests, resources.limits))
        return asked is None or allowed is None or asked <= allowed

    return Rule(
        "requests",
        cel=f"!has(self.requests) || !has({request}) || !has(self.limits) || !has({limit}) || "
        # An amount that is no quantity has its own message; comparing it would fail with another.
        f"!isQuantity(string({request})) || !isQuantity(string({limit})) || "
        f"quantity(string({request})).compareTo(quantity(string({limit}))) <= 0",
        message=f"asks for more {field} than limits allow: raise limits.{field} or lower "
        f"requests.{field}",
        holds=holds,
    )


class Resources(Fields):
    requests: ResourceAmounts | None = None
    """What a node must have free for each replica. Default: the limits. What has no limit either:
    for each GPU 1 core and 4Gi of memory, with engine.kvCache.offload.cpu beside it; on a CPU 500m
    and 2Gi; ephemeral-storage as model.cache.size says."""
    limits: ResourceAmounts | None = None
    """What each replica may use at most. The memory limit must hold the whole model on a CPU, and
    the loading buffers on GPUs."""

    rules: ClassVar = tuple(_request_within_limit(field) for field in _RESOURCES)


class Toleration(Fields):
    key: LabelKey | None = None
    """Key of the taint; without one, operator must be Exists and every taint is tolerated."""
    operator: Literal["Exists", "Equal"] | None = None
    """Exists, or Equal to compare the value. Default: Equal."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; without one, all effects."""
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """How long a pod stays after a NoExecute taint appeared. Default: for ever."""

    rules: ClassVar = (
        Rule(
            "operator",
            cel="(has(self.key) && size(self.key) > 0) || "
            "(has(self.operator) && self.operator == 'Exists')",
            message="must be Exists when there is no key: write operator: Exists or name the key",
            holds=lambda self: bool(self.key) or self.operator == "Exists",
        ),
        Rule(
            "value",
            cel="!has(self.value) || size(self.value) == 0 || !has(self.operator) || "
            "self.operator != 'Exists'",
            message="is not looked at with operator Exists: remove it or write operator: Equal",
            holds=lambda self: not self.value or self.operator != "Exists",
        ),
        Rule(
            "tolerationSeconds",
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            message="works with effect NoExecute only: write effect: NoExecute or remove it",
            holds=lambda self: self.toleration_seconds is None or self.effect == "NoExecute",
        ),
    )

    def covers_every_taint_of(self, key: str) -> bool:
        """Return whether no taint of this key keeps a new pod from a node, whatever its value."""
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
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Taints that the replicas tolerate. On GPUs they also tolerate the one that their nodes often
    carry, with the name of the GPUs' resource, such as nvidia.com/gpu, and the effect
    NoSchedule."""
    affinity: Affinity | None = None
    """Which nodes, and which pods beside them, the replicas must have or should have."""
    topology_spread_constraints: Annotated[
        tuple[TopologySpreadConstraint, ...],
        Field(
            max_length=8,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["topologyKey", "whenUnsatisfiable"],
            },
        ),
    ] = ()
    """How the replicas are spread over nodes, zones or other places."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods, which decides who gives way when GPUs are short. Default: the
    cluster's."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods, such as nvidia. Default: the node's own."""
    scheduler_name: ObjectName | None = None
    """Scheduler that places the pods. Default: the cluster's."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods, for policies and clouds that go by it; its token is not mounted,
    for the model server never speaks to the API server. Where the chart's admission policy is on,
    whoever sets it must be allowed to create pods. Default: default."""
    labels: Labels = Field(default_factory=dict)
    """Further labels of the pods."""
    annotations: Annotations = Field(default_factory=dict)
    """Further annotations of the pods."""

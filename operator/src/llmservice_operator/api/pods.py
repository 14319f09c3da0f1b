"""spec.resources and spec.template: what each replica may use and where it may run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmservice_operator.api.fields import Fields, Quantity, Rule, quantity_value

_QUANTITY_FORM = "[0-9]+([.][0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?"


_RESOURCE_NAMES = (
    # field, the same in CEL, attribute
    ("cpu", "cpu", "cpu"),
    ("memory", "memory", "memory"),
    ("ephemeral-storage", "ephemeral__dash__storage", "ephemeral_storage"),
)


class ResourceAmounts(Fields):
    cpu: Quantity | None = None
    """CPU cores, such as 4 or 500m."""
    memory: Quantity | None = None
    """Memory, such as 32Gi; shared memory between the engine's processes counts towards it."""
    ephemeral_storage: Annotated[Quantity | None, Field(alias="ephemeral-storage")] = None
    """Disk space on the node for logs and the downloaded model, such as 200Gi."""

    rules: ClassVar = tuple(
        Rule(
            field,
            cel=f"!has(self.{escaped}) || string(self.{escaped}).matches('^{_QUANTITY_FORM}$')",
            message=f"must be a quantity such as {example}",
            holds=lambda amounts, attribute=attribute: (
                getattr(amounts, attribute) is None
                or quantity_value(getattr(amounts, attribute)) is not None
            ),
        )
        for field, escaped, attribute, example in (
            ("cpu", "cpu", "cpu", "4 or 500m"),
            ("memory", "memory", "memory", "32Gi"),
            ("ephemeral-storage", "ephemeral__dash__storage", "ephemeral_storage", "200Gi"),
        )
    )


def _request_within_limit(field: str, escaped: str, attribute: str) -> Rule:
    request, limit = f"self.requests.{escaped}", f"self.limits.{escaped}"

    def holds(resources: Resources) -> bool:
        amounts = (resources.requests, resources.limits)
        values = [quantity_value(getattr(each, attribute, None) or "") for each in amounts]
        return values[0] is None or values[1] is None or values[0] <= values[1]

    return Rule(
        "requests",
        cel=f"!has(self.requests) || !has({request}) || !has(self.limits) || !has({limit}) || "
        f"!isQuantity(string({request})) || !isQuantity(string({limit})) || "
        f"quantity(string({request})).compareTo(quantity(string({limit}))) <= 0",
        message=f"asks for more {field} than limits allow: raise limits.{field} or lower "
        f"requests.{field}",
        holds=holds,
    )


class Resources(Fields):
    requests: ResourceAmounts | None = None
    """What a node must have free for each replica. Default: the limits."""
    limits: ResourceAmounts | None = None
    """What each replica may use at most. The memory limit must hold the whole model on a CPU, and
    the loading buffers on GPUs."""

    rules: ClassVar = tuple(_request_within_limit(*names) for names in _RESOURCE_NAMES)


LabelText = Annotated[str, Field(max_length=63)]


class Toleration(Fields):
    key: Annotated[str, Field(max_length=316)] | None = None
    """Key of the taint; without one, operator must be Exists and every taint is tolerated."""
    operator: Literal["Exists", "Equal"] | None = None
    """Exists, or Equal to compare the value. Default: Equal."""
    value: LabelText | None = None
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


class Template(Fields):
    node_selector: Annotated[
        Mapping[Annotated[str, Field(max_length=316)], LabelText], Field(max_length=32)
    ] = Field(default_factory=dict)
    """Labels that a node must have to run a replica."""
    tolerations: Annotated[
        tuple[Toleration, ...],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Taints that the replicas tolerate, such as the one GPU nodes often carry."""

"""Accelerator classes that an administrator defines in the chart's values, such as h100.

A class supplies the fields that the spec of a service does not set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from llmservice_operator.api.accelerator import MAX_GPUS, ClassName, GpuResource
from llmservice_operator.api.fields import Fields, wrong_content
from llmservice_operator.api.labels import KEY_LENGTH, KEYS_ARE_VALID, LabelValue
from llmservice_operator.api.pods import Resources, Toleration
from llmservice_operator.errors import InvalidSettings


class AcceleratorClass(Fields):
    # The API server validates an LLMService, but not this type. So unknown fields are refused here.
    model_config = ConfigDict(extra="forbid")

    node_selector: Annotated[
        Mapping[Annotated[str, Field(max_length=KEY_LENGTH)], LabelValue], KEYS_ARE_VALID
    ] = Field(default_factory=dict)
    """Labels of the nodes that have the accelerator."""
    tolerations: tuple[Toleration, ...] = ()
    """Tolerations for the taints of these nodes."""
    resource_name: GpuResource | None = None
    """Resource name that the device plugin on these nodes advertises."""
    gpu: ClassName | None = None
    """Name of the GPU, as in the node label nvidia.com/gpu.product. None: the name of the class."""
    gpus_per_node: Annotated[int, Field(ge=1, le=MAX_GPUS)] | None = None
    """Number of GPUs or MIG slices of each node. None: the chart value gpusPerNode for whole GPUs,
    and no limit for slices."""
    price_per_hour: Annotated[Decimal, Field(ge=0, le=100_000)] | None = None
    """Price of one GPU or slice per hour, in US dollars. None: unknown."""
    resources: Resources = Resources()
    """CPU, memory, disk and devices of a replica on these nodes. An amount in the spec takes
    precedence."""


_CLASSES: TypeAdapter[dict[str, AcceleratorClass]] = TypeAdapter(dict[ClassName, AcceleratorClass])


def parse_classes(text: str, variable: str) -> Mapping[str, AcceleratorClass]:
    """Return a mapping from the name of each class in a JSON text to the class.

    Raises InvalidSettings, which names the wrong field.
    """
    try:
        return _CLASSES.validate_python(json.loads(text))
    except json.JSONDecodeError as error:
        raise InvalidSettings(f"{variable} is not valid JSON: {error}") from error
    except ValidationError as error:
        raise wrong_content(variable, error) from error

"""Devices of a replica in addition to its GPUs: extended resources, huge pages and claims."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final

from pydantic import Field

from llmservice_operator.api.accelerator import GPU_RESOURCES, RESOURCE_PATTERN
from llmservice_operator.api.fields import Fields, Quantity, Rule, ValueRule, keyed_by, matches
from llmservice_operator.api.references import ObjectName

GPU_CLAIM: Final = "gpus"
"""Name, within the pod, of the claim for the GPUs of a replica."""

_NAME: Final = f"{RESOURCE_PATTERN}|hugepages-(2Mi|1Gi)"
_NAME_LENGTH: Final = 200
"""Maximum length of a resource name, in characters. A name of this length is also valid in a quota,
where Kubernetes puts "requests." before the name and limits the part before the slash to 253
characters."""
_RESERVED: Final = "(.*[.])?kubernetes[.]io/.*|requests[.].*"
"""Pattern of the names that Kubernetes reserves for its own resources."""

_COUNT: Final = "[1-9][0-9]{0,5}"
_AMOUNTS: Final = {
    "hugepages-2Mi": f"{_COUNT}Gi|([1-9][0-9]{{0,5}})?[2468]Mi|{_COUNT}0Mi",
    "hugepages-1Gi": f"{_COUNT}Gi",
}
"""Patterns of the amounts of huge pages, which are multiples of the page size. The amount of every
other resource is a number of devices."""


def _is_name(key: str) -> bool:
    return (
        len(key) <= _NAME_LENGTH
        and re.fullmatch(_NAME, key) is not None
        and re.fullmatch(_RESERVED, key) is None
    )


def _is_amount(key: str, amount: str) -> bool:
    return re.fullmatch(_AMOUNTS.get(key, _COUNT), amount) is not None


_GPUS: Final = [*GPU_RESOURCES.values()]


def _is_gpu(key: str) -> bool:
    return key in _GPUS or key.startswith("nvidia.com/mig-")


ExtendedResources = Annotated[
    Mapping[Annotated[str, Field(max_length=_NAME_LENGTH)], Quantity],
    Field(max_length=8),
    ValueRule(
        cel=f"self.all(key, size(key) <= {_NAME_LENGTH} && key.matches('^({_NAME})$') && "
        f"!key.matches('^({_RESERVED})$'))",
        message="has an invalid name: write a resource of a device plugin as in a node's "
        "status.allocatable, such as rdma/hca, or hugepages-2Mi or hugepages-1Gi",
        holds=lambda amounts: all(map(_is_name, amounts)),
    ),
    ValueRule(
        cel=f"self.all(key, !(key in {_GPUS}) && !key.startsWith('nvidia.com/mig-'))",
        message="contains GPUs, which the engine would not use: set accelerator.count, and "
        "accelerator.resourceName, instead",
        holds=lambda amounts: not any(map(_is_gpu, amounts)),
    ),
    ValueRule(
        cel="self.all(key, string(self[key]).matches("
        + " : ".join(
            (
                *(f"key == '{name}' ? '^({form})$'" for name, form in _AMOUNTS.items()),
                f"'^{_COUNT}$'))",
            )
        ),
        message="has an invalid amount: write a whole number of devices, and huge pages as a "
        "multiple of their size in Mi or Gi, such as 512Mi",
        holds=lambda amounts: all(_is_amount(*each) for each in amounts.items()),
    ),
]


class ResourceClaim(Fields):
    name: Annotated[
        str,
        Field(min_length=1, max_length=63),
        matches(
            "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
            "must consist of lower-case letters, digits and -, such as nic",
        ),
        ValueRule(
            cel=f"self != '{GPU_CLAIM}'",
            message="is reserved for the claim of accelerator.resourceClaimTemplateName: choose "
            "another name",
            holds=lambda name: name != GPU_CLAIM,
        ),
    ]
    """Name of the claim in the pod."""
    resource_claim_name: ObjectName | None = None
    """ResourceClaim in the LLMService's namespace. All replicas share its devices."""
    resource_claim_template_name: ObjectName | None = None
    """ResourceClaimTemplate in the LLMService's namespace. Each replica gets a separate claim, made
    from this template."""

    rules: ClassVar = (
        Rule(
            "resourceClaimName",
            cel="has(self.resourceClaimName) != has(self.resourceClaimTemplateName)",
            message="is an alternative to resourceClaimTemplateName: set exactly one of the two",
            holds=lambda self: (
                (self.resource_claim_name is None) != (self.resource_claim_template_name is None)
            ),
        ),
    )


ResourceClaims = Annotated[
    tuple[ResourceClaim, ...],
    Field(
        max_length=8,
        json_schema_extra=keyed_by("name"),
    ),
]

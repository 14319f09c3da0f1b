"""What a replica asks of its node."""

from __future__ import annotations

from llmservice_operator.api.pods import ResourceAmounts
from llmservice_operator.api.spec import LLMService


def build_resources(service: LLMService) -> dict[str, dict[str, str]]:
    """Return the container's requests and limits, without a part that would be empty."""
    accelerator = service.spec.accelerator
    # Kubernetes wants GPUs as limits; the same number as requests keeps the two in step.
    gpus = {accelerator.gpu_resource: str(service.spec.gpus)} if service.spec.gpus else {}
    parts = {
        "requests": _amounts(service.spec.resources.requests) | gpus,
        "limits": _amounts(service.spec.resources.limits) | gpus,
    }
    return {part: amounts for part, amounts in parts.items() if amounts}


def _amounts(amounts: ResourceAmounts | None) -> dict[str, str]:
    return {} if amounts is None else amounts.model_dump(by_alias=True, exclude_none=True)

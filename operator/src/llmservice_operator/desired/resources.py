"""Resources that a replica requests from its node."""

from __future__ import annotations

import math
from typing import Any, Final

from llmservice_operator.api.devices import GPU_CLAIM
from llmservice_operator.api.fields import GIB, quantity_value
from llmservice_operator.api.pods import ResourceAmounts
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.cache import node_cache_size

CORES_PER_GPU: Final = 1
GIBIBYTES_PER_GPU: Final = 4
"""Default memory request in GiB for each GPU. The value is an estimate: with less, a replica would
be the first to starve or to be evicted. Each GPU has a process that feeds it. This process keeps
one core busy and uses about 3 GiB for libraries and buffers. The smallest nodes with a GPU have 4
cores and 16 GiB."""

CORES_ON_A_CPU: Final = "500m"
MEMORY_ON_A_CPU: Final = "2Gi"
"""Default memory request without a GPU. In this case, the memory also contains the weights and the
KV cache. The request is enough for a small model, and fits on a node with two cores."""


def build_resources(service: LLMService) -> dict[str, Any]:
    """Return the container's requests, limits and claims, without empty parts."""
    accelerator = service.spec.accelerator
    devices = dict(service.spec.resources.extended)
    if service.spec.gpus and accelerator.resource_claim_template_name is None:
        devices[accelerator.gpu_resource] = str(service.spec.gpus)
    requests = _amounts(service.spec.resources.requests)
    limits = _amounts(service.spec.resources.limits)
    # Without a request, Kubernetes uses the limit as the request. A default request could exceed
    # the limit.
    defaults = {
        name: amount for name, amount in _default_requests(service).items() if name not in limits
    }
    # Kubernetes requires limits for devices. The requests for devices must be equal to the limits.
    parts = {
        "requests": defaults | requests | devices,
        "limits": limits | devices,
        "claims": [{"name": each["name"]} for each in build_resource_claims(service)],
    }
    return {part: amounts for part, amounts in parts.items() if amounts}


def build_resource_claims(service: LLMService) -> list[dict[str, Any]]:
    """Return the pod's claims for devices, with the claim for the GPUs first."""
    claims = [
        each.model_dump(by_alias=True, exclude_none=True) for each in service.spec.resources.claims
    ]
    template = service.spec.accelerator.resource_claim_template_name
    gpus = {"name": GPU_CLAIM, "resourceClaimTemplateName": template}
    return claims if template is None else [gpus, *claims]


def offloaded_gibibytes(service: LLMService) -> int:
    """Return the memory in GiB, rounded up, that the KV cache takes outside the GPUs."""
    kv_cache = service.spec.engine.kv_cache
    offload = None if kv_cache is None else kv_cache.offload
    return 0 if offload is None else math.ceil((quantity_value(offload.cpu) or 0) / GIB)


def _default_requests(service: LLMService) -> dict[str, str]:
    """Return the default requests by resource. Without any request, the pod's QoS class would be
    BestEffort.

    Disk is requested only if the spec gives its size. The size of a model is unknown here, and a
    guess would keep small models from small nodes.
    """
    gpus = service.spec.gpus
    requests = {"cpu": CORES_ON_A_CPU, "memory": MEMORY_ON_A_CPU}
    if gpus:
        memory = GIBIBYTES_PER_GPU * gpus + offloaded_gibibytes(service)
        requests = {"cpu": str(CORES_PER_GPU * gpus), "memory": f"{memory}Gi"}
    if (disk := node_cache_size(service)) is not None:
        requests["ephemeral-storage"] = disk
    return requests


def _amounts(amounts: ResourceAmounts | None) -> dict[str, str]:
    return {} if amounts is None else amounts.model_dump(by_alias=True, exclude_none=True)

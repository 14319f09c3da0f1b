"""Locates the model cache that the replicas share.

Services share only weights. Python modules of a model and compiled kernels are code, so each pod
has its own cache for them. The spec may move the kernels to the claim of the shared cache, in a
separate folder for each service.
"""

from __future__ import annotations

from typing import Final

from llmservice_operator import names
from llmservice_operator.api.cache import Cache
from llmservice_operator.api.spec import LLMService

_HUB: Final = f"{names.MODEL_CACHE_PATH}/hub"


def cache_claim_name(service: LLMService) -> str | None:
    """Return the claim that is mounted as the cache; None without a claim."""
    cache = service.spec.model.cache
    if cache is None or not cache.is_on_a_claim:
        return None
    return cache.claim_name or names.cache_claim(service)


def node_cache_size(service: LLMService) -> str | None:
    """Return the limit of the cache on a node's disk; None if the spec sets none."""
    cache = service.spec.model.cache
    return None if cache is None else cache.node_size


def cache_variables(service: LLMService) -> dict[str, str]:
    """Return the variables that point the libraries to the claim; empty without a claim."""
    cache = service.spec.model.cache
    if cache is None or not cache.is_on_a_claim:
        return {}
    return {
        names.SHARED_CACHE_DIRECTORY_ENV: names.MODEL_CACHE_PATH,
        "HF_HUB_CACHE": _HUB,
        **_kernel_variables(service, cache),
    }


def _kernel_variables(service: LLMService, cache: Cache) -> dict[str, str]:
    if not cache.keeps_kernels:
        return {}
    folder = f"{names.MODEL_CACHE_PATH}/compile/{service.name}"
    return {
        "VLLM_CACHE_ROOT": f"{folder}/vllm",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/torchinductor",
        "TRITON_CACHE_DIR": f"{folder}/triton",
    }

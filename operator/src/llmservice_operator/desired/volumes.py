"""Where a model server may write, and where it reads the model of a claim."""

from __future__ import annotations

from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api.model import ClaimModel
from llmservice_operator.api.spec import LLMService

CACHE_SIZE_LIMIT: Final = "1Ti"
"""Upper bound of downloaded weights and compiled kernels; reserves nothing.

It stops a runaway download from filling the node. The largest open models have some 800 GB.
"""

TMP_SIZE_LIMIT: Final = "10Gi"
"""Upper bound of temporary files; reserves nothing. Uploads and lock files need far less."""

SHM_SIZE_LIMIT: Final = "8Gi"
"""Upper bound of shared memory between the engine's processes; what is used counts as the
container's memory. A judgement: NCCL and vLLM's message queues stay below 1 GB for 8 GPUs, and the
rest leaves room for images in requests. The container runtime's 64 MB would crash the engine.
"""


def build_volumes(service: LLMService) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": names.CACHE_VOLUME, "emptyDir": {"sizeLimit": CACHE_SIZE_LIMIT}},
        {"name": names.TMP_VOLUME, "emptyDir": {"sizeLimit": TMP_SIZE_LIMIT}},
        {
            "name": names.SHM_VOLUME,
            "emptyDir": {"medium": "Memory", "sizeLimit": SHM_SIZE_LIMIT},
        },
    ]
    source = service.spec.model.source
    if isinstance(source, ClaimModel):
        claim = {"claimName": source.claim, "readOnly": True}
        volumes.append({"name": names.MODELS_VOLUME, "persistentVolumeClaim": claim})
    return volumes


def build_volume_mounts(service: LLMService) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": names.CACHE_VOLUME, "mountPath": names.CACHE_PATH},
        {"name": names.TMP_VOLUME, "mountPath": names.TMP_PATH},
        {"name": names.SHM_VOLUME, "mountPath": names.SHM_PATH},
    ]
    if isinstance(service.spec.model.source, ClaimModel):
        mounts.append(
            {"name": names.MODELS_VOLUME, "mountPath": names.MODELS_PATH, "readOnly": True}
        )
    return mounts

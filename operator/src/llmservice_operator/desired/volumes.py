"""Volumes of a model server: the folders that it may write, and the claims that contain models."""

from __future__ import annotations

import math
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api.model_source import ClaimModel, HubModel, Source, StoreModel
from llmservice_operator.api.references import ApiKeysSecret, KeySource
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.cache import cache_claim_name, node_cache_size
from llmservice_operator.desired.extra_args import read_extra_args
from llmservice_operator.desired.resources import offloaded_gibibytes

CACHE_SIZE_LIMIT: Final = "1Ti"
"""Upper bound of downloaded weights and compiled kernels, if the spec sets no bound. It reserves
nothing. It limits a download that does not end. Very large open models have about 800 GB."""

TMP_SIZE_LIMIT: Final = "10Gi"
"""Upper bound of temporary files. It reserves nothing. Uploads and lock files need far less."""

SHM_GIBIBYTES: Final = 8
"""Upper bound in GiB of the shared memory between the engine's processes. Used shared memory is
part of the container's memory. The bound is an estimate. NCCL and vLLM's message queues stay below
1 GB for 8 GPUs, and the rest leaves room for images in requests. With the container runtime's
default of 64 MB, the engine would crash."""

PROCESSOR_CACHE_GIBIBYTES: Final = 4
"""vLLM's default size in GiB of the cache of processed images. SHM_GIBIBYTES has room for this
size."""

_LARGEST_PROCESSOR_CACHE_GIBIBYTES: Final = 65_536
"""Size in GiB above which a cache is considered a mistake, because it fits on no node."""

_PROCESSOR_CACHE_TYPE: Final = "--mm-processor-cache-type"
_PROCESSOR_CACHE_SIZE: Final = "--mm-processor-cache-gb"

OWNER_AND_GROUP_READ: Final = 0o440
EVERYBODY_READS: Final = 0o444


def build_volumes(service: LLMService) -> list[dict[str, Any]]:
    cache_limit = node_cache_size(service) or CACHE_SIZE_LIMIT
    volumes: list[dict[str, Any]] = [
        {"name": names.CACHE_VOLUME, "emptyDir": {"sizeLimit": cache_limit}},
        {"name": names.TMP_VOLUME, "emptyDir": {"sizeLimit": TMP_SIZE_LIMIT}},
        {
            "name": names.SHM_VOLUME,
            "emptyDir": {"medium": "Memory", "sizeLimit": _shm_size_limit(service)},
        },
    ]
    if (cache := cache_claim_name(service)) is not None:
        source: dict[str, Any] = {"claimName": cache}
        volumes.append({"name": names.MODEL_CACHE_VOLUME, "persistentVolumeClaim": source})
    if (auth := service.spec.auth) is not None:
        volumes.append(
            {"name": names.API_KEYS_VOLUME, "secret": keys_source(auth.api_keys_secret_ref)}
        )
    if (bundle := service.spec.ca_bundle) is not None:
        volumes.append({"name": names.CA_BUNDLE_VOLUME, **_bundle_source(bundle)})
    if service.spec.model.takes_adapters:
        listed: dict[str, Any] = {"name": names.adapters(service)}
        volumes.append({"name": names.ADAPTERS_VOLUME, "configMap": listed})
    for name, claim in _claims(service).items():
        source = {"claimName": claim, "readOnly": True}
        volumes.append({"name": name, "persistentVolumeClaim": source})
    return volumes


def _shm_size_limit(service: LLMService) -> str:
    """Return the size limit of the shared memory.

    vLLM stores the messages between processes, the offloaded KV cache and the cache of processed
    images in this memory.
    """
    more = offloaded_gibibytes(service) + _processor_cache_gibibytes(service)
    return f"{SHM_GIBIBYTES + more}Gi"


def _processor_cache_gibibytes(service: LLMService) -> int:
    """Return the memory in GiB, rounded up, that the cache of processed images takes in addition to
    SHM_GIBIBYTES.

    Only extraArgs can move this cache to shared memory. Each data-parallel engine has a separate
    cache.
    """
    flags = {each.flag: each.value for each in read_extra_args(service.spec)}
    if flags.get(_PROCESSOR_CACHE_TYPE) != "shm":
        return 0
    try:
        size = float(flags.get(_PROCESSOR_CACHE_SIZE, PROCESSOR_CACHE_GIBIBYTES))
    except ValueError:
        return 0  # the engine refuses the value
    if not 0 <= size <= _LARGEST_PROCESSOR_CACHE_GIBIBYTES:
        return 0
    split = service.spec.engine.parallelism
    engines = 1 if split is None else split.data
    return max(0, math.ceil(size * engines) - PROCESSOR_CACHE_GIBIBYTES)


def build_volume_mounts(service: LLMService) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": names.CACHE_VOLUME, "mountPath": names.CACHE_PATH},
        {"name": names.TMP_VOLUME, "mountPath": names.TMP_PATH},
        {"name": names.SHM_VOLUME, "mountPath": names.SHM_PATH},
    ]
    if cache_claim_name(service) is not None:
        mounts.append({"name": names.MODEL_CACHE_VOLUME, "mountPath": names.MODEL_CACHE_PATH})
    if service.spec.auth is not None:
        mounts.append(
            {"name": names.API_KEYS_VOLUME, "mountPath": names.API_KEYS_PATH, "readOnly": True}
        )
    if service.spec.ca_bundle is not None:
        mounts.append(
            {"name": names.CA_BUNDLE_VOLUME, "mountPath": names.CA_BUNDLE_PATH, "readOnly": True}
        )
    if service.spec.model.takes_adapters:
        mounts.append(
            {"name": names.ADAPTERS_VOLUME, "mountPath": names.ADAPTERS_PATH, "readOnly": True}
        )
    mounts += [
        {"name": name, "mountPath": _MOUNT_PATHS[name], "readOnly": True}
        for name in _claims(service)
    ]
    return mounts


def keys_source(reference: ApiKeysSecret) -> dict[str, Any]:
    """Return the volume source of the API keys. It stays the same when a key changes.

    The source is optional, so that the server and not only the kubelet notices a missing Secret.
    The server reports the missing Secret in its termination message, which the operator can read.
    """
    source: dict[str, Any] = {
        "secretName": reference.name,
        "optional": True,
        "defaultMode": OWNER_AND_GROUP_READ,
    }
    if reference.key is not None:
        source["items"] = [{"key": reference.key, "path": reference.key}]
    return source


def _bundle_source(bundle: KeySource) -> dict[str, Any]:
    """Return the volume source of the CA bundle. Without the bundle, a pod does not start, and the
    Events about the pod name the missing object.
    """
    reference = bundle.config_map_key_ref or bundle.secret_key_ref
    if reference is None:
        return {}
    kind, name = ("secret", "secretName") if bundle.secret_key_ref else ("configMap", "name")
    item = {"key": reference.key, "path": names.CA_BUNDLE_FILE}
    return {kind: {name: reference.name, "items": [item], "defaultMode": EVERYBODY_READS}}


_MOUNT_PATHS: Final = {
    names.MODELS_VOLUME: names.MODELS_PATH,
    names.DRAFT_MODELS_VOLUME: names.DRAFT_MODELS_PATH,
}


def _claims(service: LLMService) -> dict[str, str]:
    """Return a mapping from the name of a volume to its claim.

    If the model and the draft model are on the same claim, there is one volume.
    """
    volumes: dict[str, str] = {}
    for name, source in zip(_MOUNT_PATHS, service.spec.sources, strict=False):
        if isinstance(source, ClaimModel) and source.claim not in volumes.values():
            volumes[name] = source.claim
    return volumes


def model_locations(service: LLMService) -> list[str]:
    """Return the locations from which vLLM loads the model and, if there is one, the draft
    model.

    A location is a repository of the hub, a folder of a mounted claim, or an address in an object
    store.
    """
    return [_location(service, source) for source in service.spec.sources]


def adapter_locations(service: LLMService) -> list[str]:
    """Return the locations of the adapters, in the order of the spec."""
    return [_location(service, each.source) for each in service.spec.model.adapters]


def _location(service: LLMService, source: Source) -> str:
    if isinstance(source, HubModel):
        return source.repository
    if isinstance(source, StoreModel):
        return source.address
    mounted = {claim: _MOUNT_PATHS[name] for name, claim in _claims(service).items()}
    return f"{mounted[source.claim]}/{source.path}".rstrip("/")

"""Advises which field to set instead of an unknown field. Users often paste settings of other
projects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Final

from llmservice_operator.api.fields import Fields
from llmservice_operator.api.flags import unwrapped
from llmservice_operator.api.model_source import NEEDS_A_CLAIM

_UNKNOWN: Final = "is not a field of an LLMService"
_CLOSE: Final = 0.8
"""Minimum similarity, between 0 and 1, of a name that counts as a misspelling of another. It allows
one or two wrong letters."""

ADVICE: Final[Mapping[str, tuple[str, ...]]] = {
    "set accelerator.class and accelerator.count instead": ("resourceProfile",),
    "set accelerator.count instead": ("gpuCount", "requestGPU"),
    "set accelerator.resourceName instead": ("requestGPUType",),
    "set auth.apiKeysSecretRef instead": ("vllmApiKey",),
    "set autoscaling.minReplicas and autoscaling.maxReplicas instead": ("keda",),
    "set engine.chatTemplate instead": ("files",),
    "set engine.image instead": ("containers", "image", "repository", "tag"),
    "set engine.kvCache.offload.cpu instead": ("lmcacheConfig",),
    "set engine.parallelism.pipeline instead": ("pipelineParallelSize",),
    "set engine.parallelism.tensor instead": ("tensorParallelSize",),
    "set engine.prefixCaching.enabled instead": ("enablePrefixCaching",),
    "set engine.batching.chunkedPrefill instead": ("enableChunkedPrefill",),
    "set engine.batching.maxNumSeqs instead": ("containerConcurrency",),
    "set engine.gpuMemoryUtilizationPercent instead": ("gpuMemoryUtilization",),
    "set engine.toolCalling.parser instead": ("enableTool", "toolCallParser"),
    "set model.cache instead": ("cacheProfile", "pvcStorage"),
    "set model.cache.accessModes instead": ("pvcAccessMode",),
    "set model.credentialsSecretRef instead": ("hf_token", "hfToken"),
    "set model.uri instead": ("modelURL", "predictor", "storageUri", "url"),
    "set model.uri, and the fields of engine for the flags, instead": ("command",),
    "set replicas instead": ("replicaCount",),
    "set resources.limits.cpu instead": ("limitCPU",),
    "set resources.limits.memory instead": ("limitMemory",),
    "set resources.requests.cpu instead": ("requestCPU",),
    "set resources.requests.memory instead": ("requestMemory",),
    "set rolloutStrategy instead": ("strategy",),
    "set router.enabled instead": ("loadBalancing", "routerSpec"),
    "set service instead": ("ports",),
    "set slo instead, from which the operator derives the load of a replica": (
        "scaleMetric",
        "scaleTarget",
        "targetRequests",
    ),
    "set startup.timeoutSeconds instead; the probes are the operator's own": (
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
    ),
    "set template.affinity instead": ("nodeSelectorTerms",),
    "set termination.drainTimeoutSeconds instead": ("terminationGracePeriodSeconds",),
    "set the fields of engine, and engine.extraArgs for a flag that has none": (
        "args",
        "vllmConfig",
    ),
    "move the fields of one modelSpec into an LLMService of its own": (
        "modelSpec",
        "servingEngineSpec",
    ),
    "remove it, because a replica runs on one node": ("workerSpec",),
    "remove it, because an LLMService always runs vLLM": ("modelFormat", "runtime"),
    "remove it, because the model's files name its task": ("features",),
    "remove it, because the operator finds its pods by labels of its own": ("selector",),
    "remove it, because the operator sizes /dev/shm itself": ("shmSize",),
}
"""Each piece of advice, with the field names that it is about. The names are those of other
projects and of Kubernetes."""

_BY_NAME: Final[Mapping[str, str]] = {
    name: advice for advice, names in ADVICE.items() for name in names
}
_VOLUMES: Final = ("hostPath", "volumeMounts", "volumes")
"""Fields of a pod that people set to mount the folder of a model."""


_GPU_DOMAINS: Final = ("nvidia.com/", "amd.com/")
"""Beginnings of the resource names of GPUs."""


def why_unknown(name: str, spec: type[Fields]) -> str:
    """Return the advice about a field `name` that the spec does not have at this place."""
    if name in _VOLUMES:
        return f"{_UNKNOWN}, and {NEEDS_A_CLAIM}, and set model.uri to pvc://CLAIM/PATH"
    if name.startswith("hugepages-") or ("/" in name and not name.startswith(_GPU_DOMAINS)):
        return f"{_UNKNOWN}: set resources.extended instead"
    if "/" in name:
        return f"{_UNKNOWN}: set accelerator.count, and accelerator.resourceName, instead"
    if name in _BY_NAME:
        return f"{_UNKNOWN}: {_BY_NAME[name]}"
    places = _places(spec).get(name, ())
    if len(places) == 1:
        return f"{_UNKNOWN} at this place: set {places[0]} instead"
    near = get_close_matches(name, _places(spec), n=1, cutoff=_CLOSE)
    if near and near[0] != name:
        return f"{_UNKNOWN}: did you mean {' or '.join(_places(spec)[near[0]])}?"
    return (
        f"{_UNKNOWN}: correct its name or its indentation; `kubectl explain llmservice.spec "
        "--recursive` lists all fields"
    )


@cache
def _places(spec: type[Fields]) -> Mapping[str, tuple[str, ...]]:
    """Return a mapping from the last part of a field's path to the shortest paths that end with it:
    those with the fewest parts.
    """
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(field_paths(spec), key=lambda it: it.count(".")):
        name = path.rpartition(".")[2]
        depth = path.count(".")
        known = found.get(name, ())
        # Users more rarely mean a deeper field of the same name, such as that of a draft model.
        if not known or known[0].count(".") == depth:
            found[name] = (*known, path)
    return found


def field_paths(model: type[Fields], prefix: str = "") -> Iterator[str]:
    """Yield the paths of all fields, such as engine.kvCache.dtype; parents come first."""
    for info in model.model_fields.values():
        path = f"{prefix}{info.alias}"
        yield path
        plain, _ = unwrapped(info)
        if isinstance(plain, type) and issubclass(plain, Fields):
            yield from field_paths(plain, f"{path}.")

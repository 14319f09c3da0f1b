"""Reasons about model servers that cannot use their hub, storage or hardware: a part of
reasons.py.
"""

from __future__ import annotations

from typing import Final

from llmservice_operator.api.reason_facts import Facts, from_model_server

HUB_OVERLOADED: Final[Facts] = from_model_server(
    "HubOverloaded",
    "The hub limits the rate of requests or is overloaded, and the model is not in the cache.",
    "Name a Secret with a token in spec.model.credentialsSecretRef, because the hub grants more "
    "requests with one. Or set spec.model.hubEndpoint, or the chart value model.hubEndpoint, to a "
    "mirror. With a claim in spec.model.cache, only one replica downloads.",
)
HUB_BROKEN: Final[Facts] = from_model_server(
    "HubBroken",
    "The hub answers with an internal error, and the model is not in the cache.",
    "Wait: the server starts again. If this continues, look at the status page of the hub, or set "
    "spec.model.hubEndpoint, or the chart value model.hubEndpoint, to a mirror.",
)
PROXY_REFUSED: Final[Facts] = from_model_server(
    "ProxyRefused",
    "A proxy or a firewall between the pods and the hub refuses the requests.",
    "Allow the hub in the proxy, or correct HTTPS_PROXY in spec.engine.env or the chart value "
    "server.proxy. A proxy with authentication needs http://USER:PASSWORD@HOST:PORT, from a "
    "Secret. NO_PROXY names the hosts that need no proxy.",
)
CERTIFICATE_NOT_TRUSTED: Final[Facts] = from_model_server(
    "CertificateNotTrusted",
    "The certificate of the hub, or of a proxy in front of it, is signed by an authority that the "
    "image does not know, or has expired.",
    "Put the certificate of the authority into a ConfigMap, and name it in spec.caBundle, or in "
    "the chart value server.caBundle for all services. Or renew the certificate.",
)
STORAGE_FULL: Final[Facts] = from_model_server(
    "StorageFull",
    "The volume that the model server writes to is full, or its quota is used up.",
    "Free space on the volume, or raise spec.model.cache.size. A claim of spec.model.cache must "
    "have room for the weights of the model, and with compileCache also for compiled kernels.",
)
STORAGE_ACCESS_DENIED: Final[Facts] = from_model_server(
    "StorageAccessDenied",
    "The model server has no permission to write to a volume that it fills, or to read a file of "
    "the model.",
    "Use a volume that is not read-only for spec.model.cache. Make its files readable and "
    "writable for the group of the pod, or set spec.model.offline if it already contains the "
    "model.",
)
SHARED_MEMORY_FULL: Final[Facts] = from_model_server(
    "SharedMemoryFull",
    "The shared memory of the container (/dev/shm) is full.",
    "Raise spec.resources.limits.memory, because shared memory counts as the container's memory. "
    "Lower --mm-processor-cache-gb in spec.engine.extraArgs, or spec.engine.kvCache.offload.cpu.",
)
GPU_UNUSABLE: Final[Facts] = from_model_server(
    "GPUUnusable",
    "The engine cannot use a GPU: the container has no or too few GPUs, the node's driver is too "
    "old for the image, or the GPU itself is too old or faulty.",
    "Run `nvidia-smi` on the node, and compare its driver with the CUDA version of the image. "
    "Update the driver, use an image for it in spec.engine.image, or choose other nodes with "
    "spec.template.nodeSelector. On AMD GPUs, run `rocminfo` on the node, and set the chart value "
    "server.amdGroups to the groups of /dev/kfd and /dev/dri.",
)
SMOKE_TEST_FAILED: Final[Facts] = from_model_server(
    "SmokeTestFailed",
    "The answer of the new model server to its smoke test is wrong or late, or does not match "
    "spec.smokeTest.expect. The message quotes the model's answer.",
    "Check the weights, the quantization and the dtype of the model, or correct spec.smokeTest. If "
    "the answer is late, raise spec.smokeTest.timeoutSeconds. To serve the model anyway, set "
    "spec.smokeTest.enabled to false.",
)
TENSOR_SIZE_DOES_NOT_FIT: Final[Facts] = from_model_server(
    "TensorSizeDoesNotFit",
    "The number of GPUs over which each layer is split does not suit the model: its heads or "
    "layers cannot be divided by it.",
    "Set spec.accelerator.count, or spec.engine.parallelism.tensor, to a number that divides "
    "the heads, such as 1, 2, 4 or 8.",
)

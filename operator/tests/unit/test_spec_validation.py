"""What LLMService.parse refuses, with the exact words; the API server's words: tests/api."""

from typing import Any

import pytest

from core_support import HARMLESS_ARG, a_body, a_service
from llmservice_operator.api.accelerator import AcceleratorType
from llmservice_operator.api.model import ClaimModel, HubModel
from llmservice_operator.api.spec import LLMService
from llmservice_operator.errors import InvalidSpec

NVIDIA_ONLY = "requires accelerator.type nvidia: remove it, or choose that type"
HUB_FORM = (
    "must have the form hf://ORGANISATION/NAME, such as hf://HuggingFaceTB/SmolLM2-135M-Instruct; "
    "write a revision into model.revision"
)
CLAIM_FORM = (
    "must have the form pvc://CLAIM or pvc://CLAIM/PATH, such as pvc://models/llama; each part of "
    "PATH consists of letters, digits and . _ - and starts with a letter, digit or _"
)
IDLE_GPUS = (
    "must equal tensor x pipeline x data of engine.parallelism, or some GPUs stay idle: change "
    "one of them, or remove count"
)
DRAFT_MODEL = (
    "is required by the methods DraftModel, Eagle, Eagle3 and Medusa and refused by the others: "
    "set it or remove it to suit the method"
)
FLAG_FORM = (
    "must be --flag=value in printable ASCII, with the flag's full name in lower case and dashes, "
    "such as --block-size=32; write a switch as --enforce-eager=true"
)
ROLLING_ONLY = "requires type RollingUpdate: remove it, or choose that type"
NO_DRAIN = (
    "must be less than the number of replicas, or nodes that run one can never be drained: lower "
    "it, raise the number of replicas, or remove it"
)
PEER = (
    "must be set alone: a peer is either an ipBlock, or pods selected by podSelector, "
    "namespaceSelector or both"
)
UNSAFE_FLAG = "is set by the operator or unsafe in a shared cluster: remove it"


def model(**fields: Any) -> dict[str, Any]:
    return {"model": {"uri": "hf://org/model", **fields}}


def batching(maxModelLen: int = 100, **fields: Any) -> dict[str, Any]:
    return {"engine": {"maxModelLen": maxModelLen, "batching": fields}}


def speculation(
    method: str, parallelism: dict[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    speculative_decoding = {"method": method, "numSpeculativeTokens": 3, **fields}
    engine = {"speculativeDecoding": speculative_decoding, "parallelism": parallelism}
    return {"engine": {key: value for key, value in engine.items() if value is not None}}


def step(first: int, last: int, tokens: int) -> dict[str, int]:
    return {"minBatchSize": first, "maxBatchSize": last, "numSpeculativeTokens": tokens}


def arg(text: Any) -> dict[str, Any]:
    return {"engine": {"extraArgs": [text]}}


def variable(name: str) -> dict[str, Any]:
    return {"engine": {"env": [{"name": name, "value": "1"}]}}


KEY = {"name": "texts", "key": "a"}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
NODE_REQUIREMENT = (
    f"spec.template.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[0].matchExpressions[0]"
)
LABEL_VALUE = (
    "must be a label value: at most 63 letters, digits and . _ -, starting and ending with a "
    "letter or digit"
)
RESERVED_LABEL = (
    "has a label that the operator or Kubernetes sets: remove llmservice.dev/*, pod-template-hash "
    "and app.kubernetes.io/name, instance and managed-by"
)
APPARMOR = "container.apparmor.security.beta.kubernetes.io"


def node_affinity(requirement: dict[str, Any]) -> dict[str, Any]:
    terms = {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
    return {"template": {"affinity": {"nodeAffinity": {REQUIRED: terms}}}}


def spread(**fields: Any) -> dict[str, Any]:
    constraint = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    return {"template": {"topologySpreadConstraints": [{**constraint, **fields}]}}


REFUSED = {
    "uri without scheme": (
        model(uri="org/model"),
        "spec.model.uri: must start with hf:// or pvc://: write hf://ORGANISATION/NAME for a "
        "model on the Hugging Face Hub, or pvc://CLAIM/PATH for a folder on a "
        "PersistentVolumeClaim",
    ),
    "hub model without organisation": (model(uri="hf://gpt2"), f"spec.model.uri: {HUB_FORM}"),
    "hub model with a revision": (model(uri="hf://a/b@main"), f"spec.model.uri: {HUB_FORM}"),
    "claim path that climbs out": (model(uri="pvc://c/../x"), f"spec.model.uri: {CLAIM_FORM}"),
    "claim without a name": (model(uri="pvc://"), f"spec.model.uri: {CLAIM_FORM}"),
    "served name with a blank": (
        model(name="a b"),
        "spec.model.name: must start with a letter or digit and contain only letters, digits and "
        ". _ : / -",
    ),
    "revision that looks like an option": (
        model(revision="--x"),
        "spec.model.revision: must be a branch, tag or commit, such as main or a 40-digit commit",
    ),
    "revision of a claim": (
        model(uri="pvc://c", revision="main"),
        "spec.model.revision: applies to hf:// models only: remove it, because a folder on a "
        "claim has no revision",
    ),
    "token for a claim": (
        model(uri="pvc://c", credentialsSecretRef={"name": "t"}),
        "spec.model.credentialsSecretRef: applies to hf:// models only: remove it, because a "
        "claim needs no token",
    ),
    "secret name in capitals": (
        model(credentialsSecretRef={"name": "Token"}),
        "spec.model.credentialsSecretRef.name: must be the name of a Secret, such as hub-token",
    ),
    "secret key with a blank": (
        model(credentialsSecretRef={"name": "t", "key": "a b"}),
        "spec.model.credentialsSecretRef.key: must be a key of a Secret, such as HF_TOKEN",
    ),
    "negative replicas": (
        {"replicas": -1},
        "spec.replicas: should be greater than or equal to 0, not -1",
    ),
    "too many replicas": (
        {"replicas": 1001},
        "spec.replicas: should be less than or equal to 1000, not 1001",
    ),
    "replicas as a word": (
        {"replicas": "two"},
        "spec.replicas: should be a valid integer, unable to parse string as an integer, not 'two'",
    ),
    "replicas beside autoscaling": (
        {"replicas": 2, "autoscaling": {"maxReplicas": 3}},
        "spec.replicas: cannot be set with autoscaling: set autoscaling.minReplicas and "
        "autoscaling.maxReplicas instead, or remove autoscaling",
    ),
    "autoscaling without a maximum": (
        {"autoscaling": {"minReplicas": 2}},
        "spec.autoscaling.maxReplicas: is required",
    ),
    "scaling to zero": (
        {"autoscaling": {"minReplicas": 0, "maxReplicas": 3}},
        "spec.autoscaling.minReplicas: should be greater than or equal to 1, not 0",
    ),
    "minimum above the maximum": (
        {"autoscaling": {"minReplicas": 4, "maxReplicas": 3}},
        "spec.autoscaling.minReplicas: must be at most maxReplicas: lower it or raise maxReplicas",
    ),
    "target beyond what a replica sustains": (
        {"autoscaling": {"maxReplicas": 3, "targetGPUUtilization": 101}},
        "spec.autoscaling.targetGPUUtilization: should be less than or equal to 100, not 101",
    ),
    "queue length for another metric": (
        {"autoscaling": {"maxReplicas": 3, "targetRequestsWaiting": 3}},
        "spec.autoscaling.targetRequestsWaiting: requires the metric RequestsWaiting: remove it, "
        "or choose that metric",
    ),
    "limit of no time": (
        {"slo": {"itlMilliseconds": 0}},
        "spec.slo.itlMilliseconds: should be greater than or equal to 1, not 0",
    ),
    "unknown accelerator": (
        {"accelerator": {"type": "tpu"}},
        "spec.accelerator.type: should be 'nvidia' or 'cpu', not 'tpu'",
    ),
    "GPUs on a CPU": (
        {"accelerator": {"type": "cpu", "count": 1}},
        f"spec.accelerator.count: {NVIDIA_ONLY}",
    ),
    "GPU class on a CPU": (
        {"accelerator": {"type": "cpu", "class": "H100"}},
        f"spec.accelerator.class: {NVIDIA_ONLY}",
    ),
    "GPU class with a blank": (
        {"accelerator": {"class": "H100 SXM"}},
        "spec.accelerator.class: must be an accelerator class, or a GPU as in the node label "
        "nvidia.com/gpu.product, such as H100",
    ),
    "GPU resource on a CPU": (
        {"accelerator": {"type": "cpu", "resourceName": "nvidia.com/gpu"}},
        f"spec.accelerator.resourceName: {NVIDIA_ONLY}",
    ),
    "no GPU at all": (
        {"accelerator": {"count": 0}},
        "spec.accelerator.count: should be greater than or equal to 1, not 0",
    ),
    "GPU resource without a domain": (
        {"accelerator": {"resourceName": "gpu"}},
        "spec.accelerator.resourceName: must have the form DOMAIN/NAME, as in a node's "
        "status.allocatable, such as nvidia.com/gpu",
    ),
    "image with a blank": (
        {"engine": {"image": "a b"}},
        "spec.engine.image: must be an image reference, such as "
        "registry.example.com/llmservice/server:0.1.0",
    ),
    "version that is a tag": (
        {"engine": {"version": "latest"}},
        "spec.engine.version: must be a vLLM version, such as 0.32.0",
    ),
    "fewer tokens in a step than requests": (
        batching(maxNumSeqs=9, maxNumBatchedTokens=8),
        "spec.engine.batching.maxNumBatchedTokens: must be at least maxNumSeqs, because every "
        "request gets a token in each step: raise it or lower maxNumSeqs",
    ),
    "long prompts bounded and never parted": (
        batching(longPrefillTokenThreshold=1, chunkedPrefill=False),
        "spec.engine.batching.longPrefillTokenThreshold: requires chunked prefill: remove it, or "
        "remove chunkedPrefill: false",
    ),
    "whole prompts that fit no step": (
        batching(maxNumBatchedTokens=8, chunkedPrefill=False, maxModelLen=9),
        "spec.engine.batching.maxNumBatchedTokens: must be at least engine.maxModelLen when "
        "chunkedPrefill is false: raise it, lower maxModelLen or remove chunkedPrefill",
    ),
    "whole prompts of any length in a step of a certain one": (
        {"engine": {"batching": {"maxNumBatchedTokens": 8192, "chunkedPrefill": False}}},
        "spec.engine.maxModelLen: must be set, to at most batching.maxNumBatchedTokens, when "
        "chunkedPrefill is false: a whole prompt must fit into one step, and the model may accept "
        "longer prompts",
    ),
    "more requests than the engine may compute tokens": (
        {"engine": {"batching": {"maxNumSeqs": 2049}}},
        "spec.engine.batching.maxNumBatchedTokens: must be set to at least maxNumSeqs when that "
        "is above 2048: every request gets a token in each step, and the engine's default may be "
        "only 2048",
    ),
    "a cache that the limit of the disk would end": (
        {
            "model": {"uri": "hf://org/model", "cache": {"type": "Ephemeral", "size": "10Gi"}},
            "resources": {"limits": {"ephemeral-storage": "9Gi"}},
        },
        "spec.model.cache.size: exceeds resources.limits.ephemeral-storage, at which the kubelet "
        "evicts a replica: raise that limit or lower the size",
    ),
    "long prompts longer than the context": (
        batching(longPrefillTokenThreshold=9, maxModelLen=8),
        "spec.engine.batching.longPrefillTokenThreshold: must be at most engine.maxModelLen: lower "
        "it",
    ),
    "batch of nothing": (
        batching(maxNumSeqs=0),
        "spec.engine.batching.maxNumSeqs: should be greater than or equal to 1, not 0",
    ),
    "policy of the engine's spelling": (
        batching(schedulingPolicy="fcfs"),
        "spec.engine.batching.schedulingPolicy: should be 'FCFS' or 'Priority', not 'fcfs'",
    ),
    "mode that does not exist": (
        batching(performanceMode="Fast"),
        "spec.engine.batching.performanceMode: should be 'Balanced', 'Interactivity' or "
        "'Throughput', not 'Fast'",
    ),
    "prefix caching without a word": (
        {"engine": {"prefixCaching": {}}},
        "spec.engine.prefixCaching.enabled: is required",
    ),
    "quantization with a blank": (
        {"engine": {"quantization": "a b"}},
        "spec.engine.quantization: must be a quantization method of the engine, such as fp8 or awq",
    ),
    "all of the GPU's memory": (
        {"engine": {"gpuMemoryUtilizationPercent": 100}},
        "spec.engine.gpuMemoryUtilizationPercent: should be less than or equal to 99, not 100",
    ),
    "GPU memory on a CPU": (
        {"accelerator": {"type": "cpu"}, "engine": {"gpuMemoryUtilizationPercent": 90}},
        f"spec.engine.gpuMemoryUtilizationPercent: {NVIDIA_ONLY}",
    ),
    "parallelism on a CPU": (
        {"accelerator": {"type": "cpu"}, "engine": {"parallelism": {"tensor": 1}}},
        f"spec.engine.parallelism: {NVIDIA_ONLY}",
    ),
    "offload from a CPU": (
        {"accelerator": {"type": "cpu"}, "engine": {"kvCache": {"offload": {"cpu": "1Gi"}}}},
        f"spec.engine.kvCache.offload: {NVIDIA_ONLY}",
    ),
    "offload of next to nothing": (
        {"engine": {"kvCache": {"offload": {"cpu": "1023Mi"}}}},
        "spec.engine.kvCache.offload.cpu: must be at least 1Gi: a smaller cache has no effect",
    ),
    "offload in words": (
        {"engine": {"kvCache": {"offload": {"cpu": "lots"}}}},
        "spec.engine.kvCache.offload.cpu: must be a quantity such as 4, 500m or 32Gi, with at "
        "most three decimals",
    ),
    "KV cache format of the engine's spelling": (
        {"engine": {"kvCache": {"dtype": "fp8"}}},
        "spec.engine.kvCache.dtype: should be 'Auto', 'BFloat16', 'FP8', 'FP8E4M3' or 'FP8E5M2', "
        "not 'fp8'",
    ),
    "more GPUs than a node has": (
        {"engine": {"parallelism": {"tensor": 8, "pipeline": 9}}},
        "spec.engine.parallelism.tensor: makes more than 64 GPUs with pipeline and data, the most "
        "on one node: lower one of them",
    ),
    "GPUs that would be idle": (
        {"accelerator": {"count": 8}, "engine": {"parallelism": {"tensor": 4}}},
        f"spec.accelerator.count: {IDLE_GPUS}",
    ),
    "GPUs that cannot be shared out": (
        {"accelerator": {"count": 8}, "engine": {"parallelism": {"pipeline": 3}}},
        f"spec.accelerator.count: {IDLE_GPUS}",
    ),
    "speculation without a number": (
        {"engine": {"speculativeDecoding": {"method": "Ngram"}}},
        "spec.engine.speculativeDecoding.numSpeculativeTokens: is required",
    ),
    "too many guesses": (
        speculation("Ngram", numSpeculativeTokens=17),
        "spec.engine.speculativeDecoding.numSpeculativeTokens: should be less than or equal to 16, "
        "not 17",
    ),
    "method that does not exist": (
        speculation("Lookahead"),
        "spec.engine.speculativeDecoding.method: should be 'Ngram', 'Suffix', 'DraftModel', "
        "'Eagle', 'Eagle3', 'MTP' or 'Medusa', not 'Lookahead'",
    ),
    "draft model that nobody asks": (
        speculation("Ngram", draftModel={"uri": "hf://o/d"}),
        f"spec.engine.speculativeDecoding.draftModel: {DRAFT_MODEL}",
    ),
    "head that is not named": (
        speculation("Eagle3"),
        f"spec.engine.speculativeDecoding.draftModel: {DRAFT_MODEL}",
    ),
    "revision of a draft model on a claim": (
        speculation("Medusa", draftModel={"uri": "pvc://c/d", "revision": "main"}),
        "spec.engine.speculativeDecoding.draftModel.revision: applies to hf:// models only: "
        "remove it, because a folder on a claim has no revision",
    ),
    "n-grams for a draft model": (
        speculation("MTP", ngram={"promptLookupMax": 3}),
        "spec.engine.speculativeDecoding.ngram: requires the method Ngram: remove it, or choose "
        "that method",
    ),
    "n-grams from long to short": (
        speculation("Ngram", ngram={"promptLookupMin": 4, "promptLookupMax": 3}),
        "spec.engine.speculativeDecoding.ngram.promptLookupMax: must be at least promptLookupMin: "
        "raise it or lower promptLookupMin",
    ),
    "schedule that leaves single requests out": (
        speculation("Ngram", schedule=[step(2, 4, 3)]),
        "spec.engine.speculativeDecoding.schedule: must have a step for one request: set "
        "minBatchSize: 1 in the first step",
    ),
    "schedule that says two things": (
        speculation("Ngram", schedule=[step(1, 4, 3), step(4, 8, 1)]),
        "spec.engine.speculativeDecoding.schedule: has steps that overlap: start each one above "
        "the maxBatchSize of the step before",
    ),
    "schedule above the most guesses": (
        speculation("Ngram", schedule=[step(1, 4, 4)]),
        "spec.engine.speculativeDecoding.schedule: must not guess more than numSpeculativeTokens "
        "in any step: raise numSpeculativeTokens or lower the step",
    ),
    "step from many to few": (
        speculation("Ngram", schedule=[step(4, 1, 3)]),
        "spec.engine.speculativeDecoding.schedule[0].maxBatchSize: must be at least minBatchSize: "
        "raise it or lower minBatchSize",
    ),
    "schedule for copies that cannot agree": (
        speculation("Ngram", schedule=[step(1, 4, 3)], parallelism={"data": 2}),
        "spec.engine.speculativeDecoding.schedule: cannot be combined with "
        "engine.parallelism.data: remove one of the two",
    ),
    "suffixes without an image that can": (
        speculation("Suffix"),
        "spec.engine.image: must be set when the method is Suffix, to an image with the Python "
        "package arctic-inference: the operator's own images do not include it",
    ),
    "context of no tokens": (
        {"engine": {"maxModelLen": 0}},
        "spec.engine.maxModelLen: should be greater than or equal to 1, not 0",
    ),
    "unknown number format": (
        {"engine": {"dtype": "fp4"}},
        "spec.engine.dtype: should be 'Auto', 'BFloat16', 'Float16' or 'Float32', not 'fp4'",
    ),
    "short flag": (arg("-tp=2"), f"spec.engine.extraArgs[0]: {FLAG_FORM}"),
    "flag with an underscore": (
        arg("--trust_remote_code=true"),
        f"spec.engine.extraArgs[0]: {FLAG_FORM}",
    ),
    "flag and value apart": (
        {"engine": {"extraArgs": [HARMLESS_ARG, "--max-num-seqs", "8"]}},
        f"spec.engine.extraArgs[1]: {FLAG_FORM}",
    ),
    "flag with a field of its own": (
        arg("--dtype=half"),
        "spec.engine.extraArgs[0]: --dtype has a field of its own: set engine.dtype instead",
    ),
    "foreign code": (
        arg("--worker-cls=mine.Worker"),
        f"spec.engine.extraArgs[0]: {UNSAFE_FLAG}",
    ),
    "the model's own code as a flag": (
        arg("--trust-remote-code=true"),
        "spec.engine.extraArgs[0]: --trust-remote-code has a field of its own: set "
        "model.trustRemoteCode instead",
    ),
    "alias twice": (
        model(aliases=["a", "b", "a"]),
        "spec.model.aliases: must not repeat a name: remove the duplicate",
    ),
    "alias that is the name": (
        model(name="a", aliases=["a"]),
        "spec.model.aliases: must not repeat a name: remove the duplicate",
    ),
    "alias that looks like an option": (
        model(aliases=["--x"]),
        "spec.model.aliases[0]: must start with a letter or digit and contain only letters, "
        "digits and . _ : / -",
    ),
    "offline without a place for the model": (
        model(offline=True),
        "spec.model.offline: leaves no source for an hf:// model: set cache to a claim that "
        "already holds the model, or remove offline",
    ),
    "cache on the node with a storage class": (
        model(cache={"type": "Ephemeral", "storageClassName": "fast"}),
        "spec.model.cache.type: must be PersistentVolumeClaim when a field other than size is "
        "set: set that type, or remove the other fields",
    ),
    "cache without a type": (model(cache={"size": "10Gi"}), "spec.model.cache.type: is required"),
    "claim that is neither made nor named": (
        model(cache={"type": "PersistentVolumeClaim"}),
        "spec.model.cache.size: must be set unless claimName is: keep one of the two",
    ),
    "claim that is made and named": (
        model(cache={"type": "PersistentVolumeClaim", "size": "10Gi", "claimName": "a"}),
        "spec.model.cache.size: must be set unless claimName is: keep one of the two",
    ),
    "claim of somebody's that is to be deleted": (
        model(
            cache={"type": "PersistentVolumeClaim", "claimName": "a", "retentionPolicy": "Delete"}
        ),
        "spec.model.cache.claimName: names an existing claim: remove storageClassName, "
        "accessModes and retentionPolicy, or set size instead to have a claim created",
    ),
    "claim for next to nothing": (
        model(cache={"type": "PersistentVolumeClaim", "size": "1G"}),
        "spec.model.cache.size: must be at least 1Gi: no model fits into less",
    ),
    "pull policy of a wrong spelling": (
        {"engine": {"imagePullPolicy": "always"}},
        "spec.engine.imagePullPolicy: should be 'Always', 'IfNotPresent' or 'Never', not 'always'",
    ),
    "login Secret in capitals": (
        {"engine": {"imagePullSecrets": [{"name": "Login"}]}},
        "spec.engine.imagePullSecrets[0].name: must be the name of a Secret, such as "
        "registry-login",
    ),
    "variable with a dash": (
        variable("MY-VAR"),
        "spec.engine.env[0].name: must be a variable name of letters, digits and _, such as "
        "NCCL_DEBUG",
    ),
    "variable of the operator": (
        variable("LLMSERVICE_API_PORT"),
        f"spec.engine.env[0].name: {UNSAFE_FLAG}",
    ),
    "variable that loads code": (
        variable("LD_PRELOAD"),
        f"spec.engine.env[0].name: {UNSAFE_FLAG}",
    ),
    "variable with a field of its own": (
        variable("HF_TOKEN"),
        "spec.engine.env[0].name: HF_TOKEN and HUGGING_FACE_HUB_TOKEN have a field of their own: "
        "set model.credentialsSecretRef instead",
    ),
    "variable without a value": (
        {"engine": {"env": [{"name": "A"}]}},
        "spec.engine.env[0].value: must be set unless valueFrom is: keep one of the two",
    ),
    "variable with two values": (
        {"engine": {"env": [{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": KEY}}]}},
        "spec.engine.env[0].value: must be set unless valueFrom is: keep one of the two",
    ),
    "variable from nowhere": (
        {"engine": {"env": [{"name": "A", "valueFrom": {}}]}},
        "spec.engine.env[0].valueFrom.secretKeyRef: must be set unless configMapKeyRef is: keep "
        "one of the two",
    ),
    "variable from a key that is none": (
        {
            "engine": {
                "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "a b"}}}]
            }
        },
        "spec.engine.env[0].valueFrom.secretKeyRef.key: must consist of letters, digits and . _ "
        "-, such as HF_TOKEN",
    ),
    "chat template that is a path": (
        {"engine": {"chatTemplate": {"inline": "/etc/passwd"}}},
        "spec.engine.chatTemplate.inline: must be a Jinja template with {{ }} or {% %} in it: to "
        "use a file, put it into a ConfigMap and set configMapKeyRef",
    ),
    "chat template twice": (
        {"engine": {"chatTemplate": {"inline": "{{ x }}", "configMapKeyRef": KEY}}},
        "spec.engine.chatTemplate.inline: must be set unless configMapKeyRef is: keep one of the "
        "two",
    ),
    "tool calls of no parser": (
        {"engine": {"toolCalling": {}}},
        "spec.engine.toolCalling.parser: is required",
    ),
    "parser in capitals": (
        {"engine": {"reasoningParser": "Qwen3"}},
        "spec.engine.reasoningParser: must be a parser of the engine, such as hermes",
    ),
    "a port of one's own": (arg("--port=80"), f"spec.engine.extraArgs[0]: {UNSAFE_FLAG}"),
    "a key in plain sight": (arg("--api-key=x"), f"spec.engine.extraArgs[0]: {UNSAFE_FLAG}"),
    "amount in words": (
        {"resources": {"limits": {"memory": "lots"}}},
        "spec.resources.limits.memory: must be a quantity such as 4, 500m or 32Gi, with at most "
        "three decimals",
    ),
    "amount finer than a thousandth": (
        {"resources": {"limits": {"cpu": "0.0001"}}},
        "spec.resources.limits.cpu: must be a quantity such as 4, 500m or 32Gi, with at most "
        "three decimals",
    ),
    "amount beyond every node": (
        {"resources": {"limits": {"memory": "2Pi"}}},
        "spec.resources.limits.memory: must be at most 1Pi: no node has more",
    ),
    "amount with a fraction that is no text": (
        {"resources": {"limits": {"cpu": 0.25}}},
        'spec.resources.limits.cpu: must be a string when it has a fraction: write "0.25" in '
        "quotes, or 500m for 0.5",
    ),
    "amount that is a truth value": (
        {"resources": {"limits": {"cpu": True}}},
        "spec.resources.limits.cpu: should be a valid string, not True",
    ),
    "request above its limit": (
        {"resources": {"requests": {"memory": "1025Mi"}, "limits": {"memory": "1Gi"}}},
        "spec.resources.requests: exceed the limits for memory: raise limits.memory or lower "
        "requests.memory",
    ),
    "toleration of nothing": (
        {"template": {"tolerations": [{}]}},
        "spec.template.tolerations[0].operator: must be Exists when key is unset: set operator: "
        "Exists or key",
    ),
    "toleration that compares nothing": (
        {"template": {"tolerations": [{"key": "k", "operator": "Exists", "value": "v"}]}},
        "spec.template.tolerations[0].value: has no effect with operator Exists: remove it or set "
        "operator: Equal",
    ),
    "toleration that ends for no reason": (
        {"template": {"tolerations": [{"key": "k", "tolerationSeconds": 1}]}},
        "spec.template.tolerations[0].tolerationSeconds: requires effect NoExecute: set that "
        "effect, or remove it",
    ),
    "node label that is none": (
        {"template": {"nodeSelector": {"a b": "v"}}},
        "spec.template.nodeSelector: has an invalid key: write one such as team or "
        "example.com/team",
    ),
    "node label with a blank in its value": (
        {"template": {"nodeSelector": {"a": "b c"}}},
        f"spec.template.nodeSelector.a: {LABEL_VALUE}",
    ),
    "label of the operator": (
        {"template": {"labels": {"llmservice.dev/name": "other"}}},
        f"spec.template.labels: {RESERVED_LABEL}",
    ),
    "label that picks the pods": (
        {"template": {"labels": {"app.kubernetes.io/managed-by": "me"}}},
        f"spec.template.labels: {RESERVED_LABEL}",
    ),
    "annotation that weakens the container": (
        {"template": {"annotations": {f"{APPARMOR}/server": "unconfined"}}},
        "spec.template.annotations: has an annotation that the operator sets or that weakens the "
        "container's security profile: remove it",
    ),
    "account in capitals": (
        {"template": {"serviceAccountName": "Me"}},
        "spec.template.serviceAccountName: must be a valid object name, such as gpu-high",
    ),
    "node requirement without values": (
        node_affinity({"key": "a", "operator": "In"}),
        f"{NODE_REQUIREMENT}.values: is required by the operators In, NotIn, Gt and Lt and "
        "refused by the others",
    ),
    "node requirement with values for nothing": (
        node_affinity({"key": "a", "operator": "Exists", "values": ["b"]}),
        f"{NODE_REQUIREMENT}.values: is required by the operators In, NotIn, Gt and Lt and "
        "refused by the others",
    ),
    "node requirement greater than a word": (
        node_affinity({"key": "a", "operator": "Gt", "values": ["b"]}),
        f"{NODE_REQUIREMENT}.values: must be a single whole number for the operators Gt and Lt",
    ),
    "pods in no place": (
        {"template": {"affinity": {"podAffinity": {REQUIRED: [{}]}}}},
        f"spec.template.affinity.podAffinity.{REQUIRED}[0].topologyKey: is required",
    ),
    "spread over what counts nothing": (
        spread(matchLabelKeys=["a"]),
        "spec.template.topologySpreadConstraints[0].matchLabelKeys: requires labelSelector: set "
        "it or remove matchLabelKeys",
    ),
    "spread by a label twice": (
        spread(matchLabelKeys=["a"], labelSelector={"matchLabels": {"a": "b"}}),
        "spec.template.topologySpreadConstraints[0].matchLabelKeys: must not contain a key of "
        "labelSelector: remove it from one of the two",
    ),
    "spread over a least number that binds nobody": (
        spread(minDomains=2),
        "spec.template.topologySpreadConstraints[0].minDomains: requires whenUnsatisfiable "
        "DoNotSchedule: set that, or remove it",
    ),
    "Service object of an unknown type": (
        {"service": {"type": "ExternalName"}},
        "spec.service.type: should be 'ClusterIP', 'NodePort' or 'LoadBalancer', not "
        "'ExternalName'",
    ),
    "Service object without a port": (
        {"service": {"port": 0}},
        "spec.service.port: should be greater than or equal to 1, not 0",
    ),
    "annotation with a blank": (
        {"service": {"annotations": {"a b": "c"}}},
        "spec.service.annotations: has an invalid key: write one such as team or example.com/team",
    ),
    "keys without a Secret": ({"auth": {}}, "spec.auth.apiKeysSecretRef: is required"),
    "keys in a Secret of no name": (
        {"auth": {"apiKeysSecretRef": {"key": "a"}}},
        "spec.auth.apiKeysSecretRef.name: is required",
    ),
    "keys of another namespace": (
        {"auth": {"apiKeysSecretRef": {"name": "other/keys"}}},
        "spec.auth.apiKeysSecretRef.name: must be the name of a Secret, such as hub-token",
    ),
    "key that is a path": (
        {"auth": {"apiKeysSecretRef": {"name": "keys", "key": "../a"}}},
        "spec.auth.apiKeysSecretRef.key: must consist of letters, digits and . _ -, such as "
        "HF_TOKEN",
    ),
    "surge where the operator decides": (
        {"rolloutStrategy": {"maxSurge": 1}},
        f"spec.rolloutStrategy.maxSurge: {ROLLING_ONLY}",
    ),
    "missing replicas where all go at once": (
        {"rolloutStrategy": {"type": "Recreate", "maxUnavailable": 1}},
        f"spec.rolloutStrategy.maxUnavailable: {ROLLING_ONLY}",
    ),
    "rollout that cannot begin": (
        {"rolloutStrategy": {"type": "RollingUpdate", "maxSurge": 0}},
        "spec.rolloutStrategy.maxUnavailable: must be at least 1 when maxSurge is 0, or no "
        "replica can ever be replaced",
    ),
    "rollout of an unknown type": (
        {"rolloutStrategy": {"type": "BlueGreen"}},
        "spec.rolloutStrategy.type: should be 'Auto', 'RollingUpdate' or 'Recreate', not "
        "'BlueGreen'",
    ),
    "deadline before anything could happen": (
        {"rolloutStrategy": {"progressDeadlineSeconds": 1}},
        "spec.rolloutStrategy.progressDeadlineSeconds: should be greater than or equal to 60, not "
        "1",
    ),
    "budget that says it twice": (
        {"replicas": 3, "podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}},
        "spec.podDisruptionBudget.maxUnavailable: cannot be combined with minAvailable: remove "
        "one of the two",
    ),
    "budget that lets nobody go": (
        {"podDisruptionBudget": {"maxUnavailable": "0%"}},
        "spec.podDisruptionBudget.maxUnavailable: must be at least 1, or nodes that run a replica "
        "can never be drained",
    ),
    "budget that is a word": (
        {"podDisruptionBudget": {"maxUnavailable": "half"}},
        "spec.podDisruptionBudget.maxUnavailable: must be a number of replicas such as 1, or a "
        "percentage such as 25%",
    ),
    "budget that keeps the only replica": (
        {"podDisruptionBudget": {"minAvailable": 1}},
        f"spec.podDisruptionBudget.minAvailable: {NO_DRAIN}",
    ),
    "budget that keeps every replica": (
        {"replicas": 3, "podDisruptionBudget": {"minAvailable": 3}},
        f"spec.podDisruptionBudget.minAvailable: {NO_DRAIN}",
    ),
    "budget that is rounded up to every replica": (
        {"replicas": 2, "podDisruptionBudget": {"minAvailable": "51%"}},
        f"spec.podDisruptionBudget.minAvailable: {NO_DRAIN}",
    ),
    "peer that is nobody": (
        {"networkPolicy": {"from": [{}]}},
        f"spec.networkPolicy.from[0].ipBlock: {PEER}",
    ),
    "peer that is two things": (
        {"networkPolicy": {"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]}},
        f"spec.networkPolicy.from[0].ipBlock: {PEER}",
    ),
    "peer without a length": (
        {"networkPolicy": {"from": [{"ipBlock": {"cidr": "10.0.0.1"}}]}},
        "spec.networkPolicy.from[0].ipBlock.cidr: must be a CIDR range such as 10.0.0.0/8",
    ),
    "exception from something else": (
        {
            "networkPolicy": {
                "from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["192.168.0.0/16"]}}]
            }
        },
        "spec.networkPolicy.from[0].ipBlock.except: must be parts of cidr, each smaller than the "
        "whole",
    ),
    "peers of no policy": (
        {"networkPolicy": {"enabled": False, "from": [{"podSelector": {}}]}},
        "spec.networkPolicy.from: has no effect without the NetworkPolicy: remove it, or remove "
        "enabled: false",
    ),
    "drain longer than a day": (
        {"termination": {"drainTimeoutSeconds": 86401}},
        "spec.termination.drainTimeoutSeconds: should be less than or equal to 86400, not 86401",
    ),
    "stop in the past": (
        {"termination": {"preStopSeconds": -1}},
        "spec.termination.preStopSeconds: should be greater than or equal to 0, not -1",
    ),
    "suspended by a word": (
        {"suspend": "maybe"},
        "spec.suspend: should be a valid boolean, unable to interpret input, not 'maybe'",
    ),
    "no model": ({"model": None}, "spec.model: must be an object with fields, not None"),
    "no uri": ({"model": {}}, "spec.model.uri: is required"),
}


@pytest.mark.parametrize(("spec", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_spec_is_refused_with_what_to_write_instead(
    spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        LLMService.parse(a_body(spec))
    assert str(refused.value) == message


@pytest.mark.parametrize("name", ["7b", "a.b", "Qwen", "a_b", "-a", "a-", "a" * 64, ""])
def test_a_name_that_no_service_object_can_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        LLMService.parse(a_body(metadata={"name": name}))
    assert str(refused.value) == (
        "metadata.name: must be a valid Service name: at most 63 lower-case letters, digits and "
        "'-', starting with a letter and ending with a letter or digit, such as qwen-7b"
    )


@pytest.mark.parametrize("name", ["a", "qwen-7b", "a" * 63])
def test_a_name_that_a_service_object_can_have_is_taken(name: str) -> None:
    assert LLMService.parse(a_body(metadata={"name": name})).name == name


def test_an_unknown_field_is_refused_where_no_api_server_did_it_before() -> None:
    body = a_body({"engine": {"maxModelLength": 1}})
    with pytest.raises(InvalidSpec) as refused:
        LLMService.parse(body, refuse_unknown_fields=True)
    assert str(refused.value) == (
        "spec.engine.maxModelLength: is not a field of an LLMService: correct its name or its "
        "indentation; `kubectl explain llmservice.spec --recursive` lists all fields"
    )


def test_an_unknown_field_of_a_newer_crd_is_ignored() -> None:
    assert a_service({"engine": {"maxModelLength": 1}}).spec.engine.max_model_len is None


def test_a_status_that_cannot_be_read_is_forgotten() -> None:
    service = a_service(status={"replicas": -1, "conditions": "?"})
    assert service.status.conditions == ()


def test_a_minimal_spec_asks_for_one_replica_on_one_gpu() -> None:
    spec = a_service().spec
    assert spec.desired_replicas == 1
    assert spec.accelerator.type is AcceleratorType.NVIDIA
    assert (spec.gpus, spec.accelerator.gpu_resource) == (1, "nvidia.com/gpu")


def test_a_whole_number_is_a_quantity() -> None:
    limits = a_service({"resources": {"limits": {"cpu": 2, "memory": 1.5e9}}}).spec.resources.limits
    assert limits is not None
    assert (limits.cpu, limits.memory) == ("2", "1500000000")


def test_no_replicas_is_something_else_than_unset_replicas() -> None:
    assert a_service({"replicas": 0}).spec.desired_replicas == 0


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("hf://org/model", HubModel("org/model")),
        ("pvc://claim", ClaimModel("claim", "")),
        ("pvc://claim/a/b.c", ClaimModel("claim", "a/b.c")),
    ],
)
def test_a_uri_says_where_the_model_is(uri: str, source: HubModel | ClaimModel) -> None:
    assert a_service(model(uri=uri)).spec.model.source == source


@pytest.mark.parametrize(
    ("count", "parallelism", "gpus", "tensor"),
    [
        (None, None, 1, 1),
        (4, None, 4, 4),
        (None, {"tensor": 2}, 2, 2),
        (None, {"tensor": 2, "pipeline": 3, "data": 2}, 12, 2),
        (8, {"pipeline": 2}, 8, 4),
        (8, {"data": 8, "expert": True}, 8, 1),
    ],
)
def test_gpus_follow_from_the_count_and_from_how_the_model_is_split(
    count: int | None, parallelism: dict[str, Any] | None, gpus: int, tensor: int
) -> None:
    accelerator = {} if count is None else {"count": count}
    engine = {} if parallelism is None else {"parallelism": parallelism}
    spec = a_service({"accelerator": accelerator, "engine": engine}).spec
    assert (spec.gpus, spec.tensor_parallelism) == (gpus, tensor)

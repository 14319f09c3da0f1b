"""Tests the refusals of LLMService.parse about spec.engine, with their exact messages."""

from typing import Any

import pytest

from operator_support.services import HARMLESS_ARG, refusal_of

GPUS_ONLY = "requires GPUs: remove it, or set accelerator.type to nvidia or amd"


DRAFT_MODEL = (
    "is required by the methods DraftModel, Eagle, Eagle3, Medusa and DFlash, and refused by "
    "Ngram and Suffix: set it or remove it to suit the method"
)


FLAG_FORM = (
    "must be --flag=value in printable ASCII, with the flag's full name in lower case and dashes, "
    f"such as {HARMLESS_ARG}; write a switch as --flag=true, and nested options as JSON, such as "
    '--attention-config={"backend": "TRITON_ATTN"}'
)


UNSAFE_FLAG = "is set by the operator or unsafe in a shared cluster: remove it"


FEW_STEP_TOKENS = (
    "spec.engine.batching.maxNumBatchedTokens: must be at least "
    "engine.speculativeDecoding.numSpeculativeTokens + 1, which is what one request needs in a "
    "step. With adapters, this number times maxNumSeqs. The engine's default may be only 2048. "
    "Raise it, or lower one of the others"
)


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


def seven_guesses(**batching: int) -> dict[str, Any]:
    engine = speculation("Ngram", numSpeculativeTokens=7)["engine"]
    return {"engine": engine | {"batching": batching}}


def step(first: int, last: int, tokens: int) -> dict[str, int]:
    return {"minBatchSize": first, "maxBatchSize": last, "numSpeculativeTokens": tokens}


def arg(text: Any) -> dict[str, Any]:
    return {"engine": {"extraArgs": [text]}}


def variable(name: str) -> dict[str, Any]:
    return {"engine": {"env": [{"name": name, "value": "1"}]}}


KEY = {"name": "texts", "key": "a"}


REFUSED = {
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
        "spec.engine.maxModelLen: must be a number, at most batching.maxNumBatchedTokens, when "
        "chunkedPrefill is false: a whole prompt must fit into one step, and the model may accept "
        "longer prompts",
    ),
    "more requests than the engine may compute tokens": (
        {"engine": {"batching": {"maxNumSeqs": 2049}}},
        "spec.engine.batching.maxNumBatchedTokens: must be set to at least maxNumSeqs if "
        "maxNumSeqs is above 2048: every request gets a token in each step, and the "
        "engine's default may be only 2048",
    ),
    "fewer tokens in a step than guesses for one request": (
        seven_guesses(maxNumBatchedTokens=7),
        FEW_STEP_TOKENS,
    ),
    "fewer tokens in a step than guesses for all requests with adapters": (
        seven_guesses(maxNumSeqs=257) | model(maxLoras=1),
        FEW_STEP_TOKENS,
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
        f"spec.engine.gpuMemoryUtilizationPercent: {GPUS_ONLY}",
    ),
    "parallelism on a CPU": (
        {"accelerator": {"type": "cpu"}, "engine": {"parallelism": {"tensor": 1}}},
        f"spec.engine.parallelism: {GPUS_ONLY}",
    ),
    "offload from a CPU": (
        {"accelerator": {"type": "cpu"}, "engine": {"kvCache": {"offload": {"cpu": "1Gi"}}}},
        f"spec.engine.kvCache.offload: {GPUS_ONLY}",
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
        "spec.engine.parallelism.tensor: must be at most 64 when multiplied by pipeline and "
        "data, because a replica runs on one node: lower one of them",
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
        "'Eagle', 'Eagle3', 'MTP', 'Medusa', 'DFlash' or 'DSpark', not 'Lookahead'",
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
        "remove it, because a folder has no revision",
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
        "spec.engine.maxModelLen: must be a number of tokens from 1 to 100000000, without quotes, "
        "or Auto",
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
        "spec.engine.extraArgs[1]: --max-num-seqs has a field of its own: set "
        "engine.batching.maxNumSeqs instead",
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
        "spec.engine.env[0].value: is an alternative to valueFrom: set exactly one of the two",
    ),
    "variable with two values": (
        {"engine": {"env": [{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": KEY}}]}},
        "spec.engine.env[0].value: is an alternative to valueFrom: set exactly one of the two",
    ),
    "variable from nowhere": (
        {"engine": {"env": [{"name": "A", "valueFrom": {}}]}},
        "spec.engine.env[0].valueFrom.secretKeyRef: is an alternative to configMapKeyRef: set "
        "exactly one of the two",
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
        "spec.engine.chatTemplate.inline: is an alternative to configMapKeyRef: set exactly "
        "one of the two",
    ),
    "tool calls of no parser": (
        {"engine": {"toolCalling": {}}},
        "spec.engine.toolCalling.parser: is required",
    ),
    "parser in capitals": (
        {"engine": {"reasoningParser": "Qwen3"}},
        "spec.engine.reasoningParser: must be a parser of the engine, such as hermes",
    ),
    "a port of one's own": (
        arg("--port=80"),
        "spec.engine.extraArgs[0]: --port is set by the operator: set service.port instead",
    ),
    "a key in plain sight": (
        arg("--api-key=x"),
        "spec.engine.extraArgs[0]: --api-key is set by the operator: set auth.apiKeysSecretRef "
        "instead",
    ),
}


@pytest.mark.parametrize(("spec", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_engine_is_refused_with_what_to_write_instead(
    spec: dict[str, Any], message: str
) -> None:
    assert refusal_of(spec) == message

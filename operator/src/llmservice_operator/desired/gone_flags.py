"""Flags and variables that only older versions of vLLM have. Deployments that are moved to the
operator may still set them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_ADVICE: Final[Mapping[str, tuple[str, ...]]] = {
    "remove it": (
        "calculate-kv-scales",
        "disable-async-output-proc",
        "disable-frontend-multiprocessing",
        "enable-prompt-adapter",
        "engine-use-ray",
        "eplb-step-interval",
        "eplb-window-size",
        "full-cuda-graph",
        "logits-processor-pattern",
        "max-long-partial-prefills",
        "max-num-partial-prefills",
        "max-prompt-adapter-token",
        "max-prompt-adapters",
        "multi-step-stream-outputs",
        "num-lookahead-slots",
        "num-redundant-experts",
        "num-scheduler-steps",
        "preemption-mode",
        "scheduler-delay-factor",
        "tokenizer-pool-size",
        "tokenizer-pool-type",
        "use-v2-block-manager",
        "worker-use-ray",
    ),
    "remove it, because requests are never logged": ("disable-log-requests",),
    "remove it, because vLLM chooses the compiler itself": (
        "guided-decoding-backend",
        "guided-decoding-disable-additional-properties",
        "guided-decoding-disable-any-whitespace",
        "guided-decoding-disable-fallback",
    ),
    "set engine.runner instead, or engine.convert": ("task",),
    'write --hf-overrides={"rope_parameters":{...}} instead': ("rope-scaling", "rope-theta"),
    "set accelerator.type instead": ("device",),
    "set engine.kvCache.offload.cpu instead": ("swap-space",),
    "set engine.reasoningParser instead": ("enable-reasoning",),
    "set engine.speculativeDecoding instead": (
        "disable-logprobs-during-spec-decoding",
        "ngram-prompt-lookup-max",
        "ngram-prompt-lookup-min",
        "num-speculative-tokens",
        "spec-decoding-acceptance-method",
        "speculative-disable-by-batch-size",
        "speculative-disable-mqa-scorer",
        "speculative-draft-tensor-parallel-size",
        "speculative-max-model-len",
        "speculative-model",
        "speculative-model-quantization",
        "typical-acceptance-sampler-posterior-alpha",
        "typical-acceptance-sampler-posterior-threshold",
    ),
    "write --cudagraph-capture-sizes instead": ("cuda-graph-sizes",),
    "write --max-cudagraph-capture-size instead": (
        "max-context-len-to-capture",
        "max-seq-len-to-capture",
    ),
    "write --mm-encoder-tp-mode=data instead": ("enable-multimodal-encoder-data-parallel",),
    "write --mm-processor-cache-gb=0 instead": ("disable-mm-preprocessor-cache",),
}

GONE: Final[Mapping[str, str]] = {
    f"--{flag}": advice for advice, flags in _ADVICE.items() for flag in flags
}
"""Advice about each flag. A flag that a supported version has is not listed."""

_VARIABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "remove it": (
        "VLLM_FP8_PADDING",
        "VLLM_RPC_TIMEOUT",
        "VLLM_USE_RAY_SPMD_WORKER",
        "VLLM_USE_TRITON_FLASH_ATTN",
        "VLLM_USE_TRTLLM_ATTENTION",
        "VLLM_USE_V1",
    ),
    "write --all2all-backend in extraArgs instead": ("VLLM_ALL2ALL_BACKEND",),
    "write --attention-backend in extraArgs instead": ("VLLM_ATTENTION_BACKEND",),
    "write --moe-backend in extraArgs instead": (
        "VLLM_FLASHINFER_MOE_BACKEND",
        "VLLM_USE_FLASHINFER_MOE_FP4",
        "VLLM_USE_FLASHINFER_MOE_FP8",
        "VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8",
    ),
}

GONE_VARIABLES: Final[Mapping[str, str]] = {
    variable: advice for advice, variables in _VARIABLES.items() for variable in variables
}
"""Advice about each environment variable. No supported version reads these variables."""

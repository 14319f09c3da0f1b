"""The engine flags that spec.engine.extraArgs may hold, by full name.

A list of what is refused cannot keep pods safe: vLLM's parser takes abbreviations, underscores and
nested flags. So only what stands here passes: flags that tune the engine and cannot run code, read
files, open ports or change how many GPUs a replica needs.
"""

from __future__ import annotations

from typing import Final

VALUE_FLAGS: Final = frozenset(
    {
        "--all2all-backend",
        "--attention-backend",
        "--block-size",
        "--chat-template-content-format",
        "--cpu-offload-gb",
        "--default-chat-template-kwargs",
        "--generation-config",
        "--gpu-memory-utilization",
        "--kv-cache-dtype",
        "--kv-cache-memory-bytes",
        "--kv-offloading-size",
        "--limit-mm-per-prompt",
        "--logprobs-mode",
        "--long-prefill-token-threshold",
        "--max-cudagraph-capture-size",
        "--max-logprobs",
        "--max-num-batched-tokens",
        "--max-num-queued-reqs",
        "--max-num-queued-tokens",
        "--max-num-seqs",
        "--mm-encoder-tp-mode",
        "--mm-processor-cache-gb",
        "--moe-backend",
        "--optimization-level",
        "--override-generation-config",
        "--performance-mode",
        "--prefix-caching-hash-algo",
        "--quantization",
        "--reasoning-parser",
        "--response-role",
        "--scheduling-policy",
        "--seed",
        "--stream-interval",
        "--tokenizer-mode",
        "--tool-call-parser",
        "--video-pruning-rate",
    }
)
"""Flags of vLLM 0.32.0 that take a value."""

SWITCH_FLAGS: Final = frozenset(
    {
        "--async-scheduling",
        "--disable-cascade-attn",
        "--disable-chunked-mm-input",
        "--disable-custom-all-reduce",
        "--disable-hybrid-kv-cache-manager",
        "--disable-sliding-window",
        "--enable-auto-tool-choice",
        "--enable-chunked-prefill",
        "--enable-expert-parallel",
        "--enable-force-include-usage",
        "--enable-log-requests",
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
        "--enforce-eager",
        "--exclude-tools-when-tool-choice-none",
        "--language-model-only",
        "--skip-mm-profiling",
    }
)
"""Flags of vLLM 0.32.0 that are on or off; each has a twin --no-NAME."""

ALLOWED_FLAGS: Final = VALUE_FLAGS | SWITCH_FLAGS

"""spec.engine.batching: how many requests and tokens the engine processes at the same time."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule
from llmservice_operator.api.flags import EngineFlag

LEAST_STEP_TOKENS = 2048
"""vLLM's smallest default for the number of tokens in a step. It applies to small GPUs and to
CPUs."""
SEQUENCES, SEQUENCES_ON_A_LARGE_GPU, SEQUENCES_ON_A_CPU = 256, 1024, 128
"""vLLM's defaults for the number of concurrent requests of an engine. Throughput doubles them.
Source: vLLM 0.30 to 0.33, engine/arg_utils.py."""


class Batching(Fields):
    max_num_seqs: (
        Annotated[int, Field(ge=1, le=65_536), EngineFlag("--max-num-seqs", is_computed=True)]
        | None
    ) = None
    """Maximum number of requests that each engine of a replica processes at the same time; further
    requests wait. A replica has one engine, or parallelism.data of them. Default: the engine's
    default for the GPU. With adapters and speculative decoding, at most maxNumBatchedTokens ÷
    (numSpeculativeTokens + 1), which the engine requires."""
    max_num_batched_tokens: (
        Annotated[
            int,
            Field(ge=1, le=100_000_000),
            EngineFlag("--max-num-batched-tokens", is_computed=True),
        ]
        | None
    ) = None
    """Maximum number of tokens in one engine step, prompts and answers together. A higher number
    increases throughput; a lower one makes the time between tokens more even. Default: the number
    that accelerator.class implies, otherwise the engine's default for the GPU."""
    chunked_prefill: Annotated[bool, EngineFlag("--enable-chunked-prefill")] | None = None
    """Whether a long prompt is computed in chunks, interleaved with the answers of other requests.
    Default: the engine's default, true for every model that supports it."""
    long_prefill_token_threshold: (
        Annotated[int, Field(ge=0, le=100_000_000), EngineFlag("--long-prefill-token-threshold")]
        | None
    ) = None
    """Maximum number of prompt tokens of one request in a single step, so that long prompts leave
    room for short ones. The limit does not apply to a request that is alone in the engine; 0 sets
    no limit. Default: 0."""
    scheduling_policy: (
        Annotated[Literal["FCFS", "Priority"], EngineFlag("--scheduling-policy")] | None
    ) = None
    """Order of the waiting requests. FCFS: first come, first served. Priority: the request with the
    lowest `priority` first. Default: FCFS."""
    performance_mode: (
        Annotated[
            Literal["Balanced", "Interactivity", "Throughput"], EngineFlag("--performance-mode")
        ]
        | None
    ) = None
    """Optimization goal of the engine. Interactivity: low latency of each answer. Throughput: many
    answers at a time; the engine doubles its defaults for maxNumSeqs and maxNumBatchedTokens.
    Default: Balanced."""
    max_queued_requests: (
        Annotated[int, Field(ge=1, le=1_000_000), EngineFlag("--max-num-queued-reqs")] | None
    ) = None
    """Maximum number of requests that wait or run in one replica; a request for n answers counts n
    times. While requests wait, a request that would exceed this number is refused immediately with
    status 503. While no request waits, every request is accepted, however many prompts it contains.
    Default: 8 times `maxNumSeqs`, or 8 times the engine's own default if `maxNumSeqs` is unset."""
    max_queued_tokens: (
        Annotated[int, Field(ge=1, le=1_000_000_000), EngineFlag("--max-num-queued-tokens")] | None
    ) = None
    """Maximum number of tokens, in total, of the prompts that one replica has not completely
    computed. While this number is reached and requests wait, new requests are refused immediately
    with status 503. Default: no limit."""

    rules: ClassVar = (
        Rule(
            "maxNumBatchedTokens",
            cel="!has(self.maxNumBatchedTokens) || !has(self.maxNumSeqs) || "
            "self.maxNumBatchedTokens >= self.maxNumSeqs",
            message="must be at least maxNumSeqs, because every request gets a token in each "
            "step: raise it or lower maxNumSeqs",
            holds=lambda self: (
                self.max_num_batched_tokens is None
                or self.max_num_seqs is None
                or self.max_num_batched_tokens >= self.max_num_seqs
            ),
        ),
        Rule(
            "maxNumBatchedTokens",
            cel=f"has(self.maxNumBatchedTokens) || !has(self.maxNumSeqs) || "
            f"self.maxNumSeqs <= {LEAST_STEP_TOKENS}",
            message="must be set to at least maxNumSeqs if maxNumSeqs is above "
            f"{LEAST_STEP_TOKENS}: every request gets a token in each step, and the engine's "
            f"default may be only {LEAST_STEP_TOKENS}",
            holds=lambda self: (
                self.max_num_batched_tokens is not None
                or self.max_num_seqs is None
                or self.max_num_seqs <= LEAST_STEP_TOKENS
            ),
        ),
        Rule(
            "longPrefillTokenThreshold",
            cel="!has(self.longPrefillTokenThreshold) || self.longPrefillTokenThreshold == 0 || "
            "!has(self.chunkedPrefill) || self.chunkedPrefill",
            message="requires chunked prefill: remove it, or remove chunkedPrefill: false",
            holds=lambda self: (
                not self.long_prefill_token_threshold or self.chunked_prefill is not False
            ),
        ),
    )


class PrefixCaching(Fields):
    enabled: Annotated[bool, EngineFlag("--enable-prefix-caching")]
    """Whether the engine keeps the KV cache of a prompt and reuses it for later prompts with the
    same prefix."""

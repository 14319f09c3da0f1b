"""spec.engine.batching: how many requests and tokens the engine works on at once."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule
from llmservice_operator.api.flags import EngineFlag

LEAST_STEP_TOKENS = 2048
"""Tokens that vLLM computes in a step by default on the smallest GPU, and on a CPU."""


class Batching(Fields):
    max_num_seqs: Annotated[int, Field(ge=1, le=65_536), EngineFlag("--max-num-seqs")] | None = None
    """Requests that one replica answers at the same time; more wait. Default: the engine's, after
    the size of the GPU."""
    max_num_batched_tokens: (
        Annotated[
            int,
            Field(ge=1, le=100_000_000),
            EngineFlag("--max-num-batched-tokens", is_computed=True),
        ]
        | None
    ) = None
    """Tokens that one step computes, of prompts and answers together: more serve more requests,
    less make each answer more even. Default: the engine's, after the GPU."""
    chunked_prefill: Annotated[bool, EngineFlag("--enable-chunked-prefill")] | None = None
    """Whether a long prompt is computed in parts, between the steps of other answers. Default: the
    engine's, true for every model that can."""
    long_prefill_token_threshold: (
        Annotated[int, Field(ge=0, le=100_000_000), EngineFlag("--long-prefill-token-threshold")]
        | None
    ) = None
    """Prompt tokens of one request computed in one step at most, so that long prompts leave room
    for short ones; 0 sets no limit. Default: 0."""
    scheduling_policy: (
        Annotated[Literal["FCFS", "Priority"], EngineFlag("--scheduling-policy")] | None
    ) = None
    """Which waiting request is next: FCFS, the first to come, or Priority, the one whose `priority`
    is the lowest number. Default: FCFS."""
    performance_mode: (
        Annotated[
            Literal["Balanced", "Interactivity", "Throughput"], EngineFlag("--performance-mode")
        ]
        | None
    ) = None
    """What the engine tunes itself for: Interactivity for quick single answers, Throughput for many
    at a time. Default: Balanced."""
    max_queued_requests: (
        Annotated[int, Field(ge=1, le=1_000_000), EngineFlag("--max-num-queued-reqs")] | None
    ) = None
    """Requests that may wait in one replica; a further one is answered with 503 at once. Default:
    no limit."""
    max_queued_tokens: (
        Annotated[int, Field(ge=1, le=1_000_000_000), EngineFlag("--max-num-queued-tokens")] | None
    ) = None
    """Prompt tokens that may wait in one replica; a request that exceeds it is answered with 503 at
    once. Default: no limit."""

    rules: ClassVar = (
        Rule(
            "maxNumBatchedTokens",
            cel="!has(self.maxNumBatchedTokens) || !has(self.maxNumSeqs) || "
            "self.maxNumBatchedTokens >= self.maxNumSeqs",
            message="must be at least maxNumSeqs, for each request gets a token in a step: raise "
            "it or lower maxNumSeqs",
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
            message=f"must be set when maxNumSeqs is above {LEAST_STEP_TOKENS}, to at least that: "
            "each request gets a token in a step, and the engine's own number may be as low",
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
            message="works with chunkedPrefill only: remove it or chunkedPrefill: false",
            holds=lambda self: (
                not self.long_prefill_token_threshold or self.chunked_prefill is not False
            ),
        ),
    )


class PrefixCaching(Fields):
    enabled: Annotated[bool, EngineFlag("--enable-prefix-caching")]
    """Whether the engine keeps the KV cache of prompts and takes up from it when a later prompt
    begins alike."""

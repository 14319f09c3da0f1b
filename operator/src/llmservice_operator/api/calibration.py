"""The calibration of a service, as `status.autoscaling` stores it."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from llmservice_operator.api.fields import ATOMIC, Fields

LENGTH_BUCKETS: Final = 21
"""Buckets of a length histogram: 1 token to 2^19, and all longer ones."""

COLD_STARTS_KEPT: Final = 20

Learned = Annotated[float, Field(ge=0)]
Histogram = Annotated[
    tuple[Learned, ...],
    Field(min_length=LENGTH_BUCKETS, max_length=LENGTH_BUCKETS, json_schema_extra=ATOMIC),
]


class Calibration(Fields):
    """Measurements of the service, with which a new metrics server computes the same demand."""

    step_seconds: Annotated[
        tuple[Learned, ...], Field(min_length=4, max_length=4, json_schema_extra=ATOMIC)
    ]
    """Seconds of an engine step: fixed, per prompt token, per sequence, per KV token read."""
    capacity_factor: Learned
    """Correction of the modelled capacity from measured SLO misses."""
    cold_start_seconds: Annotated[
        tuple[Learned, ...], Field(max_length=COLD_STARTS_KEPT, json_schema_extra=ATOMIC)
    ] = ()
    """The last cold starts (pod created to Ready), oldest first."""
    prompt_lengths: Histogram
    """Histogram of prompts; entry i counts lengths in (2^(i-1), 2^i] tokens. Old ones fade."""
    answer_lengths: Histogram
    """Histogram of answers, in the same form."""
    mean_prompt_tokens: Learned
    """Mean length of a prompt."""
    mean_answer_tokens: Learned
    """Mean length of an answer."""
    computed_share: Learned
    """Share of the prompt tokens that the prefix cache does not save."""
    kv_tokens_per_sequence: Learned
    """KV tokens that a running request holds."""
    tokens_per_step: Learned = 1.0
    """Tokens of a running request in one engine step; more than one with speculation."""

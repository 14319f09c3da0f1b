"""The calibration of a service, as `status.autoscaling` stores it."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from llmservice_operator.api.fields import ATOMIC, Fields

LENGTH_BUCKETS: Final = 21
"""Number of buckets of a length histogram: 20 with upper bounds from 1 to 2^19 tokens, and one for
all greater lengths."""

COLD_STARTS_KEPT: Final = 20

SLOTS_OF_DAY: Final = 144
"""Number of equal parts of a day in a history of the load."""

HISTORY_SLOTS: Final = 15 * SLOTS_OF_DAY
"""Number of slots in a history of the load. A day more than two weeks is kept, so that a ramp of
two weeks ago is compared with the load before it."""

Learned = Annotated[float, Field(ge=0)]
Histogram = Annotated[
    tuple[Learned, ...],
    Field(min_length=LENGTH_BUCKETS, max_length=LENGTH_BUCKETS, json_schema_extra=ATOMIC),
]


class UnmetDemand(Fields):
    """A demand that exceeded the Ready replicas."""

    percent: Learned
    """Demand in percent of one replica."""
    at: Learned
    """Time at which the demand was computed, in seconds since 1970."""


class Calibration(Fields):
    """Measurements from which a new metrics server computes the same demand as the earlier one."""

    step_seconds: Annotated[
        tuple[Learned, ...], Field(min_length=4, max_length=4, json_schema_extra=ATOMIC)
    ]
    """Duration of an engine step in seconds: the fixed part, and the parts for each prompt token,
    each sequence and each KV token that is read."""
    capacity_factor: Learned
    """Correction of the modelled capacity by the measured SLO misses."""
    cold_start_seconds: Annotated[
        tuple[Learned, ...], Field(max_length=COLD_STARTS_KEPT, json_schema_extra=ATOMIC)
    ] = ()
    """Durations of the last cold starts, from the assignment of a node until the replica is Ready,
    in seconds; oldest first."""
    node_wait_seconds: Annotated[
        tuple[Learned, ...], Field(max_length=COLD_STARTS_KEPT, json_schema_extra=ATOMIC)
    ] = ()
    """Durations of the last waits for a node, from the creation of a replica until it is assigned,
    in seconds; oldest first."""
    prompt_lengths: Histogram
    """Histogram of the prompt lengths. Entry i, counted from 0, is the number of prompts of more
    than 2^(i-1) and at most 2^i tokens; the last entry counts all longer prompts. Older prompts
    have less weight."""
    answer_lengths: Histogram
    """Histogram of the answer lengths, in the same form as promptLengths."""
    mean_prompt_tokens: Learned
    """Mean length of a prompt, in tokens."""
    mean_answer_tokens: Learned
    """Mean length of an answer, in tokens."""
    computed_share: Learned
    """Share of the prompt tokens, from 0 to 1, that the engine computes because the prefix cache
    does not contain them."""
    kv_tokens_per_sequence: Learned
    """Mean number of tokens in the KV cache for each running request."""
    tokens_per_step: Learned = 1.0
    """Mean number of tokens that the engine adds to a running request in one step; above 1 with
    speculative decoding."""
    load_history: Annotated[str, Field(max_length=4 * HISTORY_SLOTS // 3 + 4)] | None = None
    """Highest load of every ten minutes of the last two weeks, one byte each, in base64; absent if
    autoscaling.forecast is Off. Byte 0 is an unknown load, and byte n is 10·(2^((n-1)/16) - 1) % of
    one replica."""
    history_slot: Annotated[int, Field(ge=0)] | None = None
    """Number of ten-minute slots from 1970 until the end of loadHistory."""
    unmet_demand: UnmetDemand | None = None
    """Demand that exceeded the Ready replicas when the calibration was stored; absent if they
    sufficed. A metrics server that starts within two minutes answers with it immediately."""

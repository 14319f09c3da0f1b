"""spec.engine.speculativeDecoding: cheap guesses at the next tokens, checked by the model."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule
from llmservice_operator.api.model import (
    REVISION_RULE,
    ClaimModel,
    HubModel,
    ModelUri,
    Quantization,
    Revision,
    model_source,
)

MAX_SPECULATIVE_TOKENS = 16

_WITH_DRAFT_MODEL = ("DraftModel", "Eagle", "Eagle3", "Medusa")


class DraftModel(Fields):
    uri: ModelUri
    """Where the draft model or head comes from, as in model.uri. A private one on the hub is read
    with the token of model.credentialsSecretRef."""
    revision: Revision | None = None
    """Branch, tag or commit of an hf:// draft model. Default: the repository's main branch."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] | None = None
    """GPUs that the draft model is split over: as many as the model, or 1 for methods other than
    DraftModel. Default: as the model."""
    quantization: Quantization | None = None
    """How the draft model's weights are quantized, by the engine's own name. Default: what its own
    configuration says."""

    rules: ClassVar = (REVISION_RULE,)

    @property
    def source(self) -> HubModel | ClaimModel:
        return model_source(self.uri)


class Ngram(Fields):
    prompt_lookup_min: Annotated[int, Field(ge=1, le=64)] = 1
    """Tokens that must recur at least for a guess; more make guesses rarer and better."""
    prompt_lookup_max: Annotated[int, Field(ge=1, le=64)]
    """Tokens that are looked for at first, before shorter ones."""

    rules: ClassVar = (
        Rule(
            "promptLookupMax",
            cel="self.promptLookupMin <= self.promptLookupMax",
            message="must be at least promptLookupMin: raise it or lower promptLookupMin",
            holds=lambda self: self.prompt_lookup_min <= self.prompt_lookup_max,
        ),
    )


class ScheduleStep(Fields):
    min_batch_size: Annotated[int, Field(ge=1, le=65_536)]
    """Requests answered at the same time from which this step holds."""
    max_batch_size: Annotated[int, Field(ge=1, le=65_536)]
    """Requests up to which it holds; beyond the last step its number goes on."""
    num_speculative_tokens: Annotated[int, Field(ge=0, le=MAX_SPECULATIVE_TOKENS)]
    """Tokens to guess meanwhile; 0 pauses speculation."""

    rules: ClassVar = (
        Rule(
            "maxBatchSize",
            cel="self.minBatchSize <= self.maxBatchSize",
            message="must be at least minBatchSize: raise it or lower minBatchSize",
            holds=lambda self: self.min_batch_size <= self.max_batch_size,
        ),
    )

    def overlaps(self, other: ScheduleStep) -> bool:
        return (
            self.min_batch_size <= other.max_batch_size
            and other.min_batch_size <= self.max_batch_size
        )


class SpeculativeDecoding(Fields):
    method: Literal["Ngram", "Suffix", "DraftModel", "Eagle", "Eagle3", "MTP", "Medusa"]
    """Who guesses: Ngram, text of the prompt that recurs; Suffix, text of earlier answers too;
    DraftModel, a small model of the same vocabulary; Eagle, Eagle3 and Medusa, heads trained
    for the model; MTP, the prediction layers that the model itself brings."""
    num_speculative_tokens: Annotated[int, Field(ge=1, le=MAX_SPECULATIVE_TOKENS)]
    """Tokens to guess in a step; 3 to 5 suit most. Each wrong guess is computed in vain."""
    draft_model: DraftModel | None = None
    """The small model or the head, for DraftModel, Eagle, Eagle3 and Medusa."""
    ngram: Ngram | None = None
    """What Ngram looks for. Default: exactly 5 tokens that recur."""
    schedule: Annotated[
        tuple[ScheduleStep, ...],
        Field(max_length=8, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """How many tokens to guess after how many requests are answered at once: guesses pay for few
    requests and cost when there are many. Default: numSpeculativeTokens always."""

    rules: ClassVar = (
        Rule(
            "draftModel",
            cel=f"(self.method in {list(_WITH_DRAFT_MODEL)}) == has(self.draftModel)",
            message="belongs to the methods DraftModel, Eagle, Eagle3 and Medusa, and each of "
            "these needs it: set it there, remove it elsewhere",
            holds=lambda self: (self.method in _WITH_DRAFT_MODEL) == (self.draft_model is not None),
        ),
        Rule(
            "ngram",
            cel="!has(self.ngram) || self.method == 'Ngram'",
            message="belongs to the method Ngram only: remove it",
            holds=lambda self: self.ngram is None or self.method == "Ngram",
        ),
        Rule(
            "schedule",
            cel="!has(self.schedule) || size(self.schedule) == 0 || "
            "self.schedule.exists(step, step.minBatchSize == 1)",
            message="must have a step for one request: write minBatchSize: 1 in the first",
            holds=lambda self: (
                not self.schedule or any(step.min_batch_size == 1 for step in self.schedule)
            ),
        ),
        Rule(
            "schedule",
            cel="!has(self.schedule) || self.schedule.all(step, self.schedule.filter(other, "
            "step.minBatchSize <= other.maxBatchSize && "
            "other.minBatchSize <= step.maxBatchSize).size() == 1)",
            message="has steps that overlap: begin each after the maxBatchSize of the one before",
            holds=lambda self: all(
                sum(step.overlaps(other) for other in self.schedule) == 1 for step in self.schedule
            ),
        ),
        Rule(
            "schedule",
            cel="!has(self.schedule) || self.schedule.all(step, "
            "step.numSpeculativeTokens <= self.numSpeculativeTokens)",
            message="must not guess more than numSpeculativeTokens in any step: raise that or "
            "lower the step",
            holds=lambda self: all(
                step.num_speculative_tokens <= self.num_speculative_tokens for step in self.schedule
            ),
        ),
    )

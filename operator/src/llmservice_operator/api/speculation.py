"""spec.engine.speculativeDecoding: a cheap draft proposes tokens, and the model verifies them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from llmservice_operator.api.fields import ATOMIC, Fields, Rule, matches
from llmservice_operator.api.model import Quantization
from llmservice_operator.api.model_source import (
    REVISION_RULE,
    OtherUri,
    Revision,
    Source,
    model_source,
)

MAX_SPECULATIVE_TOKENS = 16

_WITH_DRAFT_MODEL = ("DraftModel", "Eagle", "Eagle3", "Medusa", "DFlash")
_WITH_OR_WITHOUT = ("MTP", "DSpark")
_WITHOUT_DRAFT: Final = ("Ngram", "Suffix")

KernelName = Annotated[
    str,
    Field(min_length=1, max_length=64),
    matches("[A-Za-z0-9][A-Za-z0-9_]*", "must be the engine's name of a kernel, such as triton"),
]

_OF_A_DRAFT: Final = {
    "maxModelLen": "max_model_len",
    "draftSampling": "draft_sampling",
    "moeBackend": "moe_backend",
    "attentionBackend": "attention_backend",
    "enforceEager": "enforce_eager",
}
"""Fields that apply only to a draft model, each with its attribute."""


def _requires_a_draft(field: str, attribute: str) -> Rule:
    return Rule(
        field,
        cel=f"!has(self.{field}) || !(self.method in {list(_WITHOUT_DRAFT)})",
        message="has no effect with the methods Ngram and Suffix, which have no draft model: "
        "remove it",
        holds=lambda self: getattr(self, attribute) is None or self.method not in _WITHOUT_DRAFT,
    )


class DraftModel(Fields):
    uri: OtherUri
    """Source of the draft model or head, hf://ORGANISATION/NAME or pvc://CLAIM/PATH. A private
    repository of the hub is read with the token of model.credentialsSecretRef."""
    revision: Revision | None = None
    """Branch, tag or commit of an hf:// draft model. Default: the repository's main branch."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] | None = None
    """Number of GPUs that the draft model is split across. It must equal the model's own number;
    methods other than DraftModel also accept 1. Default: the model's own number."""
    quantization: Quantization | None = None
    """Name of the engine's quantization method for the draft model's weights. Default: the draft
    model's own configuration."""

    rules: ClassVar = (REVISION_RULE,)

    @property
    def source(self) -> Source:
        return model_source(self.uri)


class Ngram(Fields):
    prompt_lookup_min: Annotated[int, Field(ge=1, le=64)] = 1
    """Minimum number of tokens that must match. A higher number gives fewer but better guesses."""
    prompt_lookup_max: Annotated[int, Field(ge=1, le=64)]
    """Maximum number of tokens to match. The longest match within the two limits is used."""

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
    """Smallest number of concurrent requests in this range."""
    max_batch_size: Annotated[int, Field(ge=1, le=65_536)]
    """Largest number of concurrent requests in this range. If no range contains the number of
    requests, the next lower range applies."""
    num_speculative_tokens: Annotated[int, Field(ge=0, le=MAX_SPECULATIVE_TOKENS)]
    """Number of tokens to guess per engine step in this range; 0 pauses speculation."""

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
    method: Literal[
        "Ngram", "Suffix", "DraftModel", "Eagle", "Eagle3", "MTP", "Medusa", "DFlash", "DSpark"
    ]
    """Source of the guesses. Ngram: text that recurs in the prompt or the answer of a request.
    Suffix: text that recurs in the request or in earlier answers. DraftModel: a small model with
    the same vocabulary. Eagle, Eagle3, Medusa, DFlash and DSpark: heads trained for the model. MTP:
    the model's own prediction layers."""
    num_speculative_tokens: Annotated[int, Field(ge=1, le=MAX_SPECULATIVE_TOKENS)]
    """Number of tokens to guess in an engine step. Most models work well with 3 to 5. Every wrong
    guess wastes computation."""
    draft_model: DraftModel | None = None
    """Draft model or head, for all methods except Ngram and Suffix. Without it, MTP and DSpark use
    the layers in the model's own checkpoint."""
    ngram: Ngram | None = None
    """Minimum and maximum length of the recurring text that the method Ngram looks for. Default: 5
    tokens for both."""
    schedule: Annotated[
        tuple[ScheduleStep, ...],
        Field(max_length=8, json_schema_extra=ATOMIC),
    ] = ()
    """Number of tokens to guess for each range of the number of concurrent requests. Guessing
    speeds up answers while few requests run, and slows them down while many requests run. Default:
    always numSpeculativeTokens."""
    max_model_len: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Length of a request in tokens up to which the draft makes guesses; longer requests get no
    guesses. Default: the smaller of the limits of the draft and of the model."""
    draft_sampling: Literal["Greedy", "Probabilistic"] | None = None
    """Choice of the guessed tokens. Greedy: the likeliest. Probabilistic: by the draft's own
    probabilities, which needs more GPU memory. Default: Greedy."""
    rejection_sampling: Literal["Standard", "Block"] | None = None
    """Check of the guesses. Standard: one guess after the other. Block: all guesses of a step
    together. Default: Standard."""
    moe_backend: KernelName | None = None
    """Name of the engine's kernels for the experts of the draft, such as triton. Default: the
    kernels of the model."""
    attention_backend: KernelName | None = None
    """Name of the engine's attention kernels for the draft, such as FLASH_ATTN. Default: the
    engine's choice."""
    enforce_eager: bool | None = None
    """Whether the draft runs without CUDA graphs. Default: the setting of the model."""

    rules: ClassVar = (
        *(_requires_a_draft(field, attribute) for field, attribute in _OF_A_DRAFT.items()),
        Rule(
            "draftModel",
            cel=f"self.method in {list(_WITH_OR_WITHOUT)} || "
            f"(self.method in {list(_WITH_DRAFT_MODEL)}) == has(self.draftModel)",
            message="is required by the methods DraftModel, Eagle, Eagle3, Medusa and DFlash, and "
            "refused by Ngram and Suffix: set it or remove it to suit the method",
            holds=lambda self: (
                self.method in _WITH_OR_WITHOUT
                or (self.method in _WITH_DRAFT_MODEL) == (self.draft_model is not None)
            ),
        ),
        Rule(
            "ngram",
            cel="!has(self.ngram) || self.method == 'Ngram'",
            message="requires the method Ngram: remove it, or choose that method",
            holds=lambda self: self.ngram is None or self.method == "Ngram",
        ),
        Rule(
            "schedule",
            cel="!has(self.schedule) || size(self.schedule) == 0 || "
            "self.schedule.exists(step, step.minBatchSize == 1)",
            message="must have a step for one request: set minBatchSize: 1 in the first step",
            holds=lambda self: (
                not self.schedule or any(step.min_batch_size == 1 for step in self.schedule)
            ),
        ),
        Rule(
            "schedule",
            cel="!has(self.schedule) || self.schedule.all(step, self.schedule.filter(other, "
            "step.minBatchSize <= other.maxBatchSize && "
            "other.minBatchSize <= step.maxBatchSize).size() == 1)",
            message="has steps that overlap: start each one above the maxBatchSize of the step "
            "before",
            holds=lambda self: all(
                sum(step.overlaps(other) for other in self.schedule) == 1 for step in self.schedule
            ),
        ),
        Rule(
            "schedule",
            cel="!has(self.schedule) || self.schedule.all(step, "
            "step.numSpeculativeTokens <= self.numSpeculativeTokens)",
            message="must not guess more than numSpeculativeTokens in any step: raise "
            "numSpeculativeTokens or lower the step",
            holds=lambda self: all(
                step.num_speculative_tokens <= self.num_speculative_tokens for step in self.schedule
            ),
        ),
    )

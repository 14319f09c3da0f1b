"""The rule between the size of an engine step, speculative decoding and adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmservice_operator.api.batching import LEAST_STEP_TOKENS
from llmservice_operator.api.fields import Rule

if TYPE_CHECKING:
    from llmservice_operator.api.spec import LLMServiceSpec

_TAKES_ADAPTERS: Final = (
    "((has(self.model.adapters) && size(self.model.adapters) > 0) || has(self.model.maxLoras) || "
    "has(self.model.maxLoraRank))"
)
"""The CEL form of Model.takes_adapters."""
_TOKENS: Final = (
    "(has(self.engine.batching) && has(self.engine.batching.maxNumBatchedTokens) ? "
    f"self.engine.batching.maxNumBatchedTokens : {LEAST_STEP_TOKENS})"
)
_SEQUENCES: Final = (
    f"({_TAKES_ADAPTERS} && has(self.engine.batching) && has(self.engine.batching.maxNumSeqs) ? "
    "self.engine.batching.maxNumSeqs : 1)"
)


def _a_step_fits(spec: LLMServiceSpec) -> bool:
    batching, speculation = spec.engine.batching, spec.engine.speculative_decoding
    if speculation is None:
        return True
    tokens = (batching and batching.max_num_batched_tokens) or LEAST_STEP_TOKENS
    sequences = (spec.model.takes_adapters and batching and batching.max_num_seqs) or 1
    return tokens >= sequences * (speculation.num_speculative_tokens + 1)


STEP_RULES: Final = (
    Rule(
        "engine.batching.maxNumBatchedTokens",
        cel="!has(self.engine) || !has(self.engine.speculativeDecoding) || "
        f"{_TOKENS} >= {_SEQUENCES} * (self.engine.speculativeDecoding.numSpeculativeTokens + 1)",
        message="must be at least engine.speculativeDecoding.numSpeculativeTokens + 1, which is "
        "what one request needs in a step. With adapters, this number times maxNumSeqs. The "
        f"engine's default may be only {LEAST_STEP_TOKENS}. Raise it, or lower one of the others",
        holds=_a_step_fits,
    ),
)

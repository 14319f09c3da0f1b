"""What was learned about a service, small enough for its status.

The learner writes it; whoever starts later, or only follows, begins with it and so answers alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmservice_operator.scaling.assess import ScalingState
from llmservice_operator.scaling.capacity_factor import CapacityFactor
from llmservice_operator.scaling.cold_start import ColdStarts
from llmservice_operator.scaling.signals import Counters, StepSums
from llmservice_operator.scaling.step_model import StepModel, StepModelFit
from llmservice_operator.scaling.traffic import TrafficMemory

WORTH_WRITING = 0.05
"""Relative change of any learned number from which a new checkpoint is worth a write."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Learned numbers; lists as in JSON."""

    step_model: tuple[float, float, float, float]
    """Seconds: fixed, per prompt token, per sequence, per KV token."""
    capacity_factor: float
    cold_start_seconds: tuple[float, ...]
    """The last cold starts, oldest first."""
    prompt_lengths: tuple[float, ...]
    answer_lengths: tuple[float, ...]
    mean_prompt_tokens: float
    mean_answer_tokens: float
    computed_share: float
    kv_per_sequence: float
    tokens_per_step: float = 1.0

    def differs_from(self, other: "Checkpoint") -> bool:
        """Whether a number that decides has moved enough to be written."""
        pairs = zip(self._deciding(), other._deciding(), strict=True)
        return any(
            abs(mine - theirs) > WORTH_WRITING * max(abs(mine), abs(theirs))
            for mine, theirs in pairs
        )

    def _deciding(self) -> Iterator[float]:
        yield from self.step_model
        yield self.capacity_factor
        yield ColdStarts(self.cold_start_seconds).estimate
        yield self.mean_prompt_tokens
        yield self.mean_answer_tokens
        yield self.computed_share
        yield self.kv_per_sequence
        yield self.tokens_per_step


def checkpoint_of(state: ScalingState) -> Checkpoint | None:
    """What the state has learned; None before it knows a mix."""
    mix = state.traffic.mix
    if mix is None:
        return None
    seen = state.traffic.counters
    return Checkpoint(
        state.fit.model.coefficients,
        state.factor.value,
        state.cold_starts.seconds,
        seen.prompt_lengths,
        seen.answer_lengths,
        seen.prompt_tokens_arrived / sum(seen.prompt_lengths),
        seen.answer_tokens / sum(seen.answer_lengths),
        state.traffic.computed_share,
        mix.kv_per_sequence,
        mix.tokens_per_step,
    )


def with_learned(state: ScalingState, checkpoint: Checkpoint) -> ScalingState:
    """The state with what was learned elsewhere in place of its own learning."""
    prompts = sum(checkpoint.prompt_lengths)
    arrived = prompts * checkpoint.mean_prompt_tokens
    counters = Counters(
        prompt_tokens_arrived=arrived,
        prompt_tokens_computed=arrived * checkpoint.computed_share,
        prompt_tokens_cached=arrived * (1 - checkpoint.computed_share),
        prompt_lengths=checkpoint.prompt_lengths,
        answer_lengths=checkpoint.answer_lengths,
        answer_tokens=sum(checkpoint.answer_lengths) * checkpoint.mean_answer_tokens,
        steps=_held(checkpoint.kv_per_sequence),
        decoded_tokens=checkpoint.tokens_per_step,
    )
    factor: CapacityFactor = replace(state.factor, value=checkpoint.capacity_factor)
    return replace(
        state,
        fit=StepModelFit.after(
            StepModel(*checkpoint.step_model), state.fit.units or state.fit.prior
        ),
        factor=factor,
        cold_starts=ColdStarts(checkpoint.cold_start_seconds),
        traffic=TrafficMemory(counters),
    )


def _held(kv_per_sequence: float) -> StepSums:
    """Step sums that say nothing but how many KV tokens one sequence holds."""
    moments = [0.0] * len(StepSums().moments)
    moments[2], moments[3] = 1.0, kv_per_sequence
    return StepSums(tuple(moments))

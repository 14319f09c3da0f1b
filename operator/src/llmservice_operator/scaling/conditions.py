"""The conditions under which one engine serves: its requests, its limits, and the objective."""

from dataclasses import dataclass, replace

from llmservice_operator.scaling.lengths import Lengths
from llmservice_operator.scaling.step_model import StepModel

LEAST_TOKEN_SECONDS = 1e-7
"""Shortest time in seconds that a token of an answer adds to the steps. The step model may contain
zeros, but no engine serves infinitely many requests."""


@dataclass(frozen=True, slots=True)
class ServiceLevelObjective:
    """Limits of TTFT and ITL, and the share of the requests that must meet both.

    None leaves a latency unlimited.
    """

    ttft_seconds: float | None = 0.5
    itl_seconds: float | None = 0.05
    """Longest mean inter-token latency of one request."""
    objective: float = 0.95


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Limits of one engine, and the number of engines that share the requests of a replica.

    Each of the batches that an engine with a pipeline computes at the same time counts as an engine
    with its share of the sequences and of the KV cache.
    """

    max_sequences: int
    kv_capacity_tokens: float
    max_step_tokens: int
    engines: int = 1


@dataclass(frozen=True, slots=True)
class RequestMix:
    """Average composition of the traffic, from which capacity and cost follow."""

    prompts: Lengths
    """Prompt tokens that must be computed, without those that the prefix cache saves."""
    answers: Lengths
    kv_tokens_per_sequence: float
    """Mean number of KV tokens of a running sequence. It is measured over time, because sequences
    with long answers run longer."""
    tokens_per_step: float = 1.0
    """Tokens that a step adds to a decoding sequence: more than one with speculative decoding."""

    def usual(self) -> "RequestMix":
        """Return the mix without the few requests that are much longer than all others.

        One such request among hundreds delays others for seconds. It is a load like any other, but
        no reason to keep every replica nearly idle.
        """
        prompts, answers = self.prompts.without_outliers(), self.answers.without_outliers()
        if prompts is self.prompts and answers is self.answers:
            return self
        # A running sequence holds its prompt and, at a random moment, a part of its answer.
        held, usually = (
            its_prompts.mean + its_answers.mean_square / (2 * its_answers.mean)
            for its_prompts, its_answers in ((self.prompts, self.answers), (prompts, answers))
        )
        kv_tokens = self.kv_tokens_per_sequence * min(usually / held, 1.0)
        return replace(self, prompts=prompts, answers=answers, kv_tokens_per_sequence=kv_tokens)

    def work(self, model: StepModel) -> float:
        """Return the GPU-seconds that one mean request adds to its engine steps."""
        return self.prompt_work(model) + self.answers.mean * self.token_work(model)

    def prompt_work(self, model: StepModel) -> float:
        return self.prompts.mean * model.prefill

    def token_work(self, model: StepModel) -> float:
        """Return the GPU-seconds that one token of an answer adds to the engine steps."""
        step = model.sequence + model.kv * self.kv_tokens_per_sequence
        return max(step / self.tokens_per_step, LEAST_TOKEN_SECONDS)

    def in_steps(self) -> "RequestMix":
        """Return the mix with answer lengths in steps instead of tokens."""
        if self.tokens_per_step == 1:
            return self
        steps = (
            (1 + max(tokens - 1, 0.0) / self.tokens_per_step, share)
            for tokens, share in self.answers.points
        )
        return replace(self, answers=Lengths(tuple(steps)), tokens_per_step=1.0)

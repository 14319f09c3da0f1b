"""Learns the mean request of a service from fading sums of lengths, cache hits and KV tokens."""

import math
from dataclasses import dataclass, field

from llmservice_operator.scaling.conditions import RequestMix
from llmservice_operator.scaling.lengths import lengths_of
from llmservice_operator.scaling.signals import Counters

MEMORY_SECONDS = 600.0
"""Time constant of forgetting, in seconds. Nothing is forgotten while no request arrives or
finishes."""

FEWEST_REQUESTS = 10
"""Minimum number of prompts, and of finished answers, from which a mix is computed."""


@dataclass(frozen=True, slots=True)
class TrafficMemory:
    """Counters of the recent past, in which older requests have less weight."""

    counters: Counters = field(default_factory=Counters)

    def learn(self, counters: Counters, seconds: float) -> "TrafficMemory":
        """Add the counters of the last `seconds`. Without requests, nothing is forgotten."""
        if counters.arrivals + counters.finished <= 0:
            return self
        kept = math.exp(-seconds / MEMORY_SECONDS)
        return TrafficMemory(counters.plus(self.counters, kept))

    @property
    def computed_share(self) -> float:
        """Share of the prompt tokens that the prefix cache does not save."""
        return self.counters.computed_share

    @property
    def mix(self) -> RequestMix | None:
        """The mix of the requests. None if there were too few to compute it."""
        seen = self.counters
        if min(sum(seen.prompt_lengths), sum(seen.answer_lengths)) < FEWEST_REQUESTS:
            return None
        prompts = lengths_of(seen.prompt_lengths, seen.prompt_tokens_arrived)
        answers = lengths_of(seen.answer_lengths, seen.answer_tokens)
        if prompts is None or answers is None:
            return None
        steps = seen.steps
        held = (
            steps.kv_tokens / steps.sequences
            if steps.sequences > 0
            else prompts.mean + answers.mean / 2
        )
        # Speculative decoding may be off for large batches, but no step gives less than one token.
        per_step = max(1.0, seen.decoded_tokens / steps.sequences) if steps.sequences > 0 else 1.0
        return RequestMix(prompts.times(self.computed_share), answers, held, per_step)

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
    def mean_prompt_tokens(self) -> float:
        """Mean length of a prompt in tokens. 0 before the first prompt."""
        prompts = sum(self.counters.prompt_lengths)
        return self.counters.prompt_tokens_arrived / prompts if prompts > 0 else 0.0

    @property
    def computed_share(self) -> float:
        """Share of the prompt tokens that the prefix cache does not save."""
        return self.counters.computed_share

    @property
    def _unfinished_factor(self) -> float:
        """Ratio of the mean answer to the mean of those that have finished, at least 1.

        Short answers finish first, so the first ones say little about the mean. At a random moment,
        an answer in progress is half complete on average. When a quarter of the answers have
        finished, this begins to fade, and it ends at a half: from then on, an answer that has not
        finished was probably aborted by its client, so only its generated tokens count.
        """
        seen = self.counters
        processed = seen.prompt_tokens_computed + seen.prompt_tokens_cached
        if seen.prompt_tokens_arrived <= 0 or seen.answer_tokens <= 0:
            return 1.0
        begun = seen.arrivals * min(processed / seen.prompt_tokens_arrived, 1.0)
        if begun <= 0:
            return 1.0
        finished = sum(seen.answer_lengths)
        in_progress = min(max(2 - 4 * finished / begun, 0.0), 1.0)
        missing = in_progress * (seen.generated_tokens - seen.answer_tokens)
        expected = (seen.generated_tokens + missing) / begun
        return max(expected / (seen.answer_tokens / finished), 1.0)

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
        answers = answers.times(self._unfinished_factor)
        steps = seen.steps
        held = (
            steps.kv_tokens / steps.sequences
            if steps.sequences > 0
            else prompts.mean + answers.mean / 2
        )
        # Speculative decoding may be off for large batches, but no step gives less than one token.
        per_step = max(1.0, seen.decoded_tokens / steps.sequences) if steps.sequences > 0 else 1.0
        return RequestMix(prompts.split().times(self.computed_share), answers, held, per_step)

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

MOST_REST = 4.0
"""Greatest rest of the answers in progress, as a multiple of their progress. Less is known about
the rest of answers that have hardly begun."""


@dataclass(frozen=True, slots=True)
class TrafficMemory:
    """Counters of the recent past, in which older requests have less weight."""

    counters: Counters = field(default_factory=Counters)
    seconds: float = 0.0
    """Time in seconds for which requests have been counted, at full weight."""

    def learn(self, counters: Counters, seconds: float) -> "TrafficMemory":
        """Add the counters of the last `seconds`. Without requests, nothing is forgotten."""
        if counters.arrivals + counters.finished <= 0:
            return self
        kept = math.exp(-seconds / MEMORY_SECONDS)
        return TrafficMemory(counters.plus(self.counters, kept), self.seconds + seconds)

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

        Short answers finish first, so the first ones say little about the mean. The rest of the
        answers in progress is estimated. When a quarter of the answers have finished, this begins
        to fade, and it ends at a half: from then on, an answer that has not finished was probably
        aborted by its client, so only its generated tokens count. The same holds for all answers of
        a service that has been watched for more than 2 · MEMORY_SECONDS.
        """
        seen = self.counters
        processed = seen.prompt_tokens_computed + seen.prompt_tokens_cached
        if seen.prompt_tokens_arrived <= 0 or seen.answer_tokens <= 0:
            return 1.0
        begun = seen.arrivals * min(processed / seen.prompt_tokens_arrived, 1.0)
        if begun <= 0:
            return 1.0
        finished = sum(seen.answer_lengths)
        in_progress = begun - finished
        generated = seen.generated_tokens - seen.answer_tokens
        counted = min(max(2 - 4 * finished / begun, 0.0), 1.0)
        counted *= min(max(2 - self.seconds / MEMORY_SECONDS, 0.0), 1.0)
        missing = 0.0
        if counted > 0 and generated > 0:
            rest = _mean_rest(
                generated / in_progress,
                seen.answer_tokens / finished,
                seen.generated_tokens / finished,
            )
            missing = counted * in_progress * rest
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


def _mean_rest(progress: float, finished: float, tokens_per_end: float) -> float:
    """Return the mean number of tokens that the answers in progress still get.

    Their mean `progress` is half of what the first ones have by now. If all answers are alike, none
    finishes before it has that much, and the rest is as long as the progress. If an answer ends
    with the same probability at each token, the answers that have `finished` are a third as long as
    the first ones on average, and the rest is the number of generated `tokens_per_end`. In between,
    the mean length of the finished ones says which is nearer.
    """
    likeness = min(max((finished / (2 * progress) - 1 / 3) * 1.5, 0.0), 1.0)
    longest = min(max(tokens_per_end, progress), MOST_REST * progress)
    return float(progress**likeness * longest ** (1 - likeness))

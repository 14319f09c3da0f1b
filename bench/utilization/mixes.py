"""Defines mixes of requests: lengths of prompts and answers, in a random order."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

LONGEST_PROMPT = 600
LONGEST_ANSWER = 200
TOKEN_IDS = range(1000, 20000)
"""Token ids of plain words in the test models' vocabulary. They are drawn at random, so that no two
prompts begin alike."""


PROBE = TOKEN_IDS[:8]
"""Prompt of the request that measures the speed of the machine."""


@dataclass(frozen=True)
class Mix:
    """Lognormal lengths with these means, in tokens."""

    name: str
    prompt_mean: float
    answer_mean: float
    variation: float = 0.4
    """Coefficient of variation of a length: its standard deviation over its mean."""

    def requests(self, count: int, chance: random.Random) -> Iterator[tuple[list[int], int]]:
        """Yield, without end, pairs of a prompt and an answer length in tokens.

        A prompt consists of random token ids, so no cache contains it. Each group of `count`
        requests contains all lengths in their proportions, so a short level has the same mean
        lengths as a long level. The order within a group is random.
        """
        while True:
            prompts = self._lengths(self.prompt_mean, LONGEST_PROMPT, count, chance)
            answers = self._lengths(self.answer_mean, LONGEST_ANSWER, count, chance)
            for prompt, answer in zip(prompts, answers, strict=True):
                yield chance.choices(TOKEN_IDS, k=prompt), answer

    def _lengths(self, mean: float, longest: int, count: int, chance: random.Random) -> list[int]:
        sigma = math.sqrt(math.log(1 + self.variation**2))
        logarithms = NormalDist(math.log(mean) - sigma**2 / 2, sigma)
        lengths = [
            min(max(2, round(math.exp(logarithms.inv_cdf((i + 0.5) / count)))), longest)
            for i in range(count)
        ]
        chance.shuffle(lengths)
        return lengths


LEARNED = (Mix("long prompts", 180, 30, 1.0), Mix("short prompts", 40, 50, 1.0))
"""Traffic from which the step model is learned. Its lengths vary as in public traces, in which the
standard deviation is about as large as the mean."""

TESTED = (
    Mix("prefill-heavy", 300, 12),
    Mix("decode-heavy", 24, 80),
    Mix("mixed", 110, 40),
)
"""Traffic on which the utilization is tested. It differs from the traffic in LEARNED."""

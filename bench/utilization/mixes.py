"""What requests look like: lengths of prompts and answers, drawn anew for every request."""

import math
import random
from dataclasses import dataclass

LONGEST_PROMPT = 600
LONGEST_ANSWER = 200
TOKEN_IDS = range(1000, 20000)
"""Plain words in the test models' vocabulary; random ones, so that no two prompts begin alike."""


@dataclass(frozen=True)
class Mix:
    """Lognormal lengths with these means, in tokens."""

    name: str
    prompt_mean: float
    answer_mean: float
    variation: float = 0.4
    """Standard deviation of a length over its mean."""

    def prompt(self, chance: random.Random) -> list[int]:
        """Token ids of a prompt that no cache has seen."""
        length = min(_lognormal(self.prompt_mean, self.variation, chance), LONGEST_PROMPT)
        return chance.choices(TOKEN_IDS, k=length)

    def answer(self, chance: random.Random) -> int:
        return min(_lognormal(self.answer_mean, self.variation, chance), LONGEST_ANSWER)


def _lognormal(mean: float, variation: float, chance: random.Random) -> int:
    sigma = math.sqrt(math.log(1 + variation**2))
    return max(2, round(chance.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))


LEARNED = (Mix("long prompts", 180, 30), Mix("short prompts", 40, 50))
"""The traffic from which the step model is learned."""

TESTED = (
    Mix("prefill-heavy", 300, 12),
    Mix("decode-heavy", 24, 80),
    Mix("mixed", 110, 40),
)
"""Other traffic, on which the utilization is judged."""

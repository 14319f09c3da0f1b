"""Learns how long the answers to each kind of request are."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from llmservice_operator.routing.ratios import Evidence, FadingRatio

MOST_SOURCES: Final = 1000
"""Maximum number of sources whose answers are remembered. The least recently used one is forgotten
first."""
GUESS_ANSWERS: Final = 4.0
"""Number of answers that the mean length of all sources is worth for one source."""
MEMORY_ANSWERS: Final = 200.0

NO_SOURCE: Final = 0
"""Source of a request about whose answer nothing is learned."""


def source_of(key: str, route: str) -> int:
    """Return a hash of the owner of an API key and of the path of a request.

    Answers to requests of one source have similar lengths.
    """
    digest = blake2b(f"{key}\n{route}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest())


@dataclass
class AnswerLengths:
    """Mean lengths of answers in tokens, by source."""

    _of: OrderedDict[int, FadingRatio] = field(default_factory=OrderedDict)
    """Tokens per answer of each source, the least recently used first."""

    def __len__(self) -> int:
        return len(self._of)

    def expected(self, source: int, mean: float) -> float:
        """Return the expected length of an answer. `mean` is the mean length for all sources."""
        known = self._of.get(source)
        if known is None:
            return mean
        tokens, answers = known.evidence
        return (tokens + GUESS_ANSWERS * mean) / (answers + GUESS_ANSWERS)

    def add(self, source: int, tokens: float) -> None:
        """Add an answer of `tokens` tokens."""
        if source != NO_SOURCE:
            self._touched(source).add(tokens, 1.0)

    def evidence(self) -> tuple[tuple[int, Evidence], ...]:
        return tuple((source, each.evidence) for source, each in self._of.items())

    def adopt(self, learned: Iterable[tuple[int, Evidence]]) -> None:
        """Continue with the evidence of another router for each source of which it knows more."""
        for source, evidence in learned:
            self._touched(source).adopt(evidence)

    def _touched(self, source: int) -> FadingRatio:
        """Return what is known of a source, which becomes the most recently used one."""
        ratio = self._of.setdefault(source, FadingRatio(0.0, 0.0, MEMORY_ANSWERS))
        self._of.move_to_end(source)
        if len(self._of) > MOST_SOURCES:
            self._of.popitem(last=False)
        return ratio

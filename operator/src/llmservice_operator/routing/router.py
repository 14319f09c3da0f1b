"""Chooses the replica of each request, and follows the request to its end."""

from dataclasses import dataclass, field
from typing import Final

from llmservice_operator.routing.prefixes import BLOCK_BYTES, PrefixIndex
from llmservice_operator.routing.prompts import Prompt
from llmservice_operator.routing.ratios import FadingRatio
from llmservice_operator.routing.replica import Dispatch, Replica
from llmservice_operator.scaling.signals import Snapshot
from llmservice_operator.scaling.step_model import StepModel

PROMPT_WEIGHT: Final = 8.0
"""Weight of the seconds that a prompt takes the engine, in addition to the wait of the request.

These seconds delay every later request of the replica, so a warm cache is worth a longer wait. Near
its capacity a service needs more of it, and far below its capacity less.
"""

DECODE_WEIGHT: Final = 0.1
"""Weight of the seconds by which an answer delays the other requests of the replica."""

GUESSED_BYTES_PER_TOKEN: Final = 4.0
RATIO_WEIGHT_TOKENS: Final = 20_000.0
RATIO_MEMORY_TOKENS: Final = 1_000_000.0
MOST_BLOCKS: Final = 400_000
"""Maximum number of blocks that the indexes of all replicas contain together."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A replica for a request."""

    replica: str
    seconds: float | None
    """Expected seconds until the first token. None if no replica has reported recently."""


@dataclass
class Router:
    """Routes the requests of one service."""

    prior: StepModel
    """Step model of a replica that has not reported steps yet."""
    replicas: dict[str, Replica] = field(default_factory=dict)
    bytes_per_token: FadingRatio = field(
        default_factory=lambda: FadingRatio(
            GUESSED_BYTES_PER_TOKEN, RATIO_WEIGHT_TOKENS, RATIO_MEMORY_TOKENS
        )
    )
    _where: dict[int, str] = field(default_factory=dict)
    """Replica of each request in progress, by the request's number."""

    def hear(self, name: str, report: Snapshot, cache_tokens: float) -> None:
        """Process a report of a replica, whose cache contains at most `cache_tokens`."""
        replica = self.replicas.get(name)
        if replica is None:
            replica = self.replicas[name] = Replica(self.prior, PrefixIndex(0))
        blocks = cache_tokens * self.bytes_per_token.value / BLOCK_BYTES
        replica.index.capacity = int(min(blocks, MOST_BLOCKS / len(self.replicas)))
        arrived = replica.hear(report)
        if arrived.tokens > 0:
            self.bytes_per_token.add(arrived.sent_bytes, arrived.tokens)

    def drain(self, name: str) -> None:
        """Send the replica no further requests."""
        if name in self.replicas:
            self.replicas[name].is_draining = True

    def remove(self, name: str) -> None:
        """Forget a replica that has ended, with everything that its cache contained."""
        self.replicas.pop(name, None)

    def pick(self, number: int, prompt: Prompt, now: float) -> Pick | None:
        """Choose the replica with the least cost for a request, and count the request there.

        The cost is the expected seconds until the first token, and the delay that the request
        causes to others. Without a recent report, the replica with the fewest requests is chosen.
        None if there is no replica.
        """
        open_ = {name: each for name, each in self.replicas.items() if not each.is_draining}
        fresh = {name: each for name, each in open_.items() if each.is_fresh(now)}
        if not fresh:
            return self._least_requests(number, prompt, open_, now)
        choices = []
        for name, replica in fresh.items():
            dispatch = self._dispatch(replica, prompt, now)
            cost = (
                dispatch.seconds
                + PROMPT_WEIGHT * replica.seconds_of_prompt(dispatch.uncached)
                + DECODE_WEIGHT * replica.seconds_of_answer(dispatch.tokens) * replica.requests
            )
            choices.append((cost, replica.requests, name, dispatch))
        _, _, name, dispatch = min(choices, key=lambda each: each[:3])
        self._send(number, name, prompt, dispatch)
        return Pick(name, dispatch.seconds)

    def started(self, number: int, now: float) -> None:
        """Note the first token of a request."""
        if (name := self._where.get(number)) in self.replicas:
            self.replicas[name].started(number, now)

    def ended(self, number: int) -> None:
        """Note the end of a request, whatever the result."""
        if (name := self._where.pop(number, "")) in self.replicas:
            self.replicas[name].ended(number)

    def _dispatch(self, replica: Replica, prompt: Prompt, now: float) -> Dispatch:
        ratio = self.bytes_per_token.value
        tokens = prompt.size / ratio
        saved = min(replica.index.matched(prompt.chain) * BLOCK_BYTES / ratio, tokens)
        uncached = max(tokens - saved * min(replica.trust.value, 1.0), 1.0)
        seconds = replica.seconds_until_first_token(uncached, now)
        return Dispatch(now, prompt.size, tokens, saved, uncached, seconds)

    def _least_requests(
        self, number: int, prompt: Prompt, replicas: dict[str, Replica], now: float
    ) -> Pick | None:
        if not replicas:
            return None
        name = min(replicas, key=lambda each: (replicas[each].requests, each))
        tokens = prompt.size / self.bytes_per_token.value
        self._send(number, name, prompt, Dispatch(now, prompt.size, tokens, 0.0, tokens, 0.0))
        return Pick(name, None)

    def _send(self, number: int, name: str, prompt: Prompt, dispatch: Dispatch) -> None:
        self.replicas[name].send(number, dispatch)
        self.replicas[name].index.add(prompt.chain)
        self._where[number] = name

"""The messages by which a router follows another one, so that it can take over from it.

A router sends a message for each dispatch, first token and end of its own requests. A router that
follows it counts these requests like its own. Both get the reports of the same replicas, so both
learn the same from them. A router that begins to follow first gets a copy of all that the other one
knows. The messages contain hashes, numbers and names of API keys, and never a prompt or a key.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import inf
from typing import Final, Literal

from llmservice_operator.routing.limits import Counted, Limiter, Used
from llmservice_operator.routing.owners import DIGEST_BYTES, Owners
from llmservice_operator.routing.prompts import Prompt
from llmservice_operator.routing.ratios import Evidence
from llmservice_operator.routing.replica import Dispatch
from llmservice_operator.routing.router import Choice, Learned, Pick, Router
from llmservice_operator.scaling.signals import StepSums

MESSAGE_BLOCKS: Final = 4096
"""Maximum number of blocks in one message."""

MESSAGE_DIGESTS: Final = 2048
"""Maximum number of digests of objects in one message of a copy."""

MOST_FOLLOWED: Final = 50_000
"""Maximum number of another router's requests that are counted. The oldest is forgotten first."""

_BLOCK_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Sent:
    """A request was sent to a replica."""

    number: int
    replica: str
    dispatch: Dispatch
    """The request, without times."""
    blocks: bytes
    kind: Literal["sent"] = "sent"


@dataclass(frozen=True, slots=True)
class Started:
    """A request got its first token."""

    number: int
    kind: Literal["started"] = "started"


@dataclass(frozen=True, slots=True)
class Ended:
    """A request has ended, whatever the result."""

    number: int
    kind: Literal["ended"] = "ended"


@dataclass(frozen=True, slots=True)
class Stored:
    """A replica keeps objects, such as stored responses."""

    replica: str
    digests: bytes
    """Digests of the identifiers of the objects, one after the other."""
    kind: Literal["stored"] = "stored"


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """Part of a copy: a request in progress."""

    number: int
    replica: str
    dispatch: Dispatch
    """The request. Its times are ages in seconds."""
    is_started: bool
    """Whether the request has its first token."""
    kind: Literal["open"] = "open"


@dataclass(frozen=True, slots=True)
class Cached:
    """Part of a copy: blocks that a replica's cache contains, the least recently used first."""

    replica: str
    process: float
    """Start time of the replica's process, to which the cache belongs."""
    blocks: bytes
    kind: Literal["cached"] = "cached"


@dataclass(frozen=True, slots=True)
class OfReplica:
    """Part of a copy: what was learned about one replica."""

    replica: str
    trust: Evidence
    steps: StepSums
    kind: Literal["replica"] = "replica"


@dataclass(frozen=True, slots=True)
class OfAll:
    """Part of a copy: what was learned about all replicas together."""

    learned: Learned
    kind: Literal["all"] = "all"


@dataclass(frozen=True, slots=True)
class Copied:
    """The end of a copy."""

    kind: Literal["copied"] = "copied"


Message = (
    Sent
    | Started
    | Ended
    | Stored
    | OpenRequest
    | Cached
    | OfReplica
    | OfAll
    | Counted
    | Used
    | Copied
)


def sent(number: int, prompt: Prompt, pick: Pick) -> Sent:
    """Return the message about a request that was sent just now."""
    dispatch = _aged(pick.dispatch, pick.dispatch.sent)
    return Sent(number, pick.replica, dispatch, _pack(prompt.chain))


def copy_of(
    router: Router, owners: Owners, now: float, limiter: Limiter | None = None
) -> Iterator[Message]:
    """Return all that a router knows, except the requests of the routers that it follows.

    The copy does not change with the router. Its blocks, which may be many, are packed one message
    at a time.
    """
    # What was learned comes before the blocks, because the room for blocks depends on it.
    small: list[Message] = [OfAll(router.learned(now))]
    small += [
        OpenRequest(number, name, _aged(dispatch, now), is_started)
        for name, replica in router.replicas.items()
        for requests, is_started in ((replica.running, True), (replica.waiting, False))
        for number, dispatch in requests.items()
        if number >= 0
    ]
    small += [
        OfReplica(name, each.trust.evidence, each.fit.sums)
        for name, each in router.replicas.items()
    ]
    small += [
        Stored(name, digests[at : at + MESSAGE_DIGESTS * DIGEST_BYTES])
        for name, digests in owners.digests().items()
        for at in range(0, len(digests), MESSAGE_DIGESTS * DIGEST_BYTES)
    ]
    small += () if limiter is None else limiter.copy(now)
    caches = [
        (name, each.report.started, each.index.blocks())
        for name, each in router.replicas.items()
        if each.report is not None
    ]
    return chain(small, _cached(caches), (Copied(),))


def _cached(caches: Iterable[tuple[str, float, Sequence[int]]]) -> Iterator[Message]:
    for name, process, blocks in caches:
        for at in range(0, len(blocks), MESSAGE_BLOCKS):
            yield Cached(name, process, _pack(blocks[at : at + MESSAGE_BLOCKS]))


@dataclass
class OtherRouter:
    """The requests of another router of the same service.

    A router numbers its own requests from 0 upwards. Requests of other routers get the numbers
    below 0, which `numbers` yields.
    """

    router: Router
    owners: Owners
    numbers: Iterator[int]
    limiter: Limiter | None = None
    """The limits of clients; None if they have none."""
    _number_of: dict[int, int] = field(default_factory=dict)
    """Number of each open request, by the number that the other router gave it."""
    _in_progress: Counter[str] = field(default_factory=Counter)
    """Number of requests in progress, by client."""

    def apply(self, message: Message, now: float) -> None:
        """Process a message of the other router."""
        router = self.router
        match message:
            case Sent(number, replica, dispatch, blocks):
                self._send(self._add(number), replica, dispatch._replace(sent=now), blocks)
            case Started(number):
                if number in self._number_of:
                    router.started(self._number_of[number], now)
            case Ended(number):
                if number in self._number_of:
                    router.ended(self._number_of.pop(number), now)
            case Stored(replica, digests):
                for at in range(0, len(digests) - DIGEST_BYTES + 1, DIGEST_BYTES):
                    self.owners.note_digest(digests[at : at + DIGEST_BYTES], replica)
            case OpenRequest(number, replica, ages, is_started):
                started = now - ages.started if is_started else inf
                dispatch = ages._replace(sent=now - ages.sent, started=started)
                router.restore(self._add(number), replica, dispatch)
            case Cached() | OfReplica():
                self._adopt(message)
            case OfAll(learned):
                router.adopt(learned, now)
            case Counted() | Used():
                self._count(message, now)
            case Copied():
                router.recount()

    def leave(self) -> None:
        """Forget the open requests, because their ends will not be told."""
        for number in self._number_of.values():
            self.router.forget(number)
        self._number_of.clear()
        self.router.recount()
        for client, number in self._in_progress.items():
            if self.limiter is not None:
                self.limiter.lose(client, number)
        self._in_progress.clear()

    def _count(self, message: Counted | Used, now: float) -> None:
        if self.limiter is not None and (change := self.limiter.follow(message, now)):
            self._in_progress[message.client] += change

    def _add(self, number: int) -> int:
        if len(self._number_of) >= MOST_FOLLOWED:
            self.router.forget(self._number_of.pop(next(iter(self._number_of))))
        own = self._number_of[number] = next(self.numbers)
        return own

    def _send(self, number: int, name: str, dispatch: Dispatch, blocks: bytes) -> None:
        replica = self.router.replicas.get(name)
        if replica is not None:
            choice = Choice(
                name,
                dispatch._replace(started=inf),
                None,
                replica.seconds_of_prompt(dispatch.uncached),
            )
            self.router.send(number, Prompt(_unpack(blocks), dispatch.size), choice)

    def _adopt(self, message: Cached | OfReplica) -> None:
        replica = self.router.replicas.get(message.replica)
        if replica is None:
            return
        if isinstance(message, OfReplica):
            replica.trust.adopt(message.trust)
            if message.steps.steps > replica.fit.sums.steps:
                replica.fit = replace(replica.fit, sums=message.steps)
        elif replica.report is not None and replica.report.started == message.process:
            # The index takes the blocks of a prompt, which it makes the most recent ones from the
            # last to the first.
            replica.index.add(_unpack(message.blocks)[::-1])


def _aged(dispatch: Dispatch, now: float) -> Dispatch:
    """Return a request whose times are ages in seconds."""
    started = 0.0 if dispatch.started == inf else max(now - dispatch.started, 0.0)
    return dispatch._replace(sent=max(now - dispatch.sent, 0.0), started=started)


def _pack(blocks: Sequence[int]) -> bytes:
    return struct.pack(f">{len(blocks)}Q", *blocks)


def _unpack(blocks: bytes) -> tuple[int, ...]:
    """Return packed blocks. An incomplete block at the end is left out."""
    number = len(blocks) // _BLOCK_BYTES
    return struct.unpack_from(f">{number}Q", blocks)

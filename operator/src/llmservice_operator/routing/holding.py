"""Holds requests that would be late, and gives each to the first replica that becomes free.

A replica computes prompts in the order of their arrival. If a whole burst is sent immediately, a
request that is late in any case delays all those behind it, and soon every request is late. While
such a request is held, the requests that can still be in time pass it. After 32 other dispatches,
the first held request is sent next, so that held requests are sent even during a long overload.

Held requests of different API keys take turns by seconds of work. If many requests of a key are
held, and the key asks for much more work than the others, it gets a replica only when the replica
has nothing else to compute. A flood of requests therefore delays mostly the key that sends it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from heapq import nsmallest
from itertools import islice, zip_longest
from math import inf
from typing import Final, NamedTuple

from llmservice_operator.errors import OperatorError
from llmservice_operator.routing.prompts import Prompt
from llmservice_operator.routing.router import Choice, Pick, Router
from llmservice_operator.routing.shares import Shares

FREE_SECONDS: Final = 0.1
"""A replica counts as free if its present work delays a new request by at most this time in
seconds. With 0, an engine would run dry before its next request arrives."""

IDLE_SECONDS: Final = 0.02
"""The same time for the requests of a flood. It is about one step, so that the other keys hardly
wait for these requests."""

FLOOD_REQUESTS: Final = 8
"""Number of held requests of one key above which they can be a flood."""

HELD_TURN: Final = 32
"""Number of other dispatches after which the first held request is the next one to be sent."""

CANDIDATES: Final = 8
"""Maximum number of held requests that are examined to find one whose best replica is free."""

LONG_PROMPT: Final = 0.25
"""Maximum wait of a long prompt, as a share of the limit of the time until the first token."""


class TooManyHeld(OperatorError):
    """No further request can be held. The client should try again later."""


class End(Enum):
    """How a request stopped to wait without a replica."""

    CLIENT_LEFT = auto()
    TIMED_OUT = auto()
    MOVED = auto()
    """It waits elsewhere from now on, and returns from there."""


@dataclass
class Counts:
    """Counters of the held requests. Those of clients that left are in `arrived` only."""

    arrived: int = 0
    released: int = 0
    """Requests that got a replica or moved."""
    timed_out: int = 0
    refused: int = 0
    """Requests that could not be held. They are not in `arrived`."""


class Request(NamedTuple):
    """A request that needs a replica."""

    number: int
    prompt: Prompt
    size: int = 0
    """Bytes of the body, which are kept in memory while the request is held."""
    key: str = ""
    """The sender. Held requests of different keys take turns by seconds of work."""
    priority: int = 0
    """Held requests with a greater priority go first."""
    deadline: float = inf
    """Time at which the request is no longer held."""
    among: frozenset[str] | None = None
    """Names of the only replicas that may get the request; None if all may."""


@dataclass
class _Queue:
    """Held requests of one priority. The key with the least recent work is served next."""

    of_key: dict[str, deque[Request]] = field(default_factory=dict)

    def add(self, request: Request) -> None:
        self.of_key.setdefault(request.key, deque()).append(request)

    def first(self, number: int, work: Callable[[str], float]) -> list[Request]:
        """Return at most `number` requests in the order in which they should be sent.

        `work` returns the recent work of a key.
        """
        keys = nsmallest(number, self.of_key, key=work)
        rounds = zip_longest(*(islice(self.of_key[key], number) for key in keys))
        return [each for turn in rounds for each in turn if each is not None][:number]

    def remove(self, request: Request) -> None:
        requests = self.of_key[request.key]
        requests.remove(request)
        if not requests:
            del self.of_key[request.key]


@dataclass
class Holding:
    """The held requests of one service. Each new request passes through here to the router."""

    router: Router
    most_requests: int = 1000
    most_bytes: int = 64 << 20
    """Maximum sum of the sizes of all held requests."""
    counts: Counts = field(default_factory=Counts, init=False)
    _queues: dict[int, _Queue] = field(default_factory=dict, init=False)
    """Queue of each priority with held requests."""
    _held: dict[int, Request] = field(default_factory=dict, init=False)
    _bytes: int = field(default=0, init=False)
    _asked: Shares = field(default_factory=Shares, init=False)
    """Work of the requests that arrived."""
    _sent: Shares = field(default_factory=Shares, init=False)
    """Work of the requests that were sent."""
    _passed: int = field(default=0, init=False)
    """Number of consecutive dispatches that passed the first held request."""

    def __len__(self) -> int:
        return len(self._held)

    def pick(self, request: Request, now: float) -> Pick | None:
        """Choose a replica, or hold the request.

        A request is held if its first token would be late, if there is no replica, or if a request
        with a greater priority is held. Raises TooManyHeld.
        """
        if request.priority >= max(self._queues, default=request.priority):
            choice = self.router.choose(request.prompt, now, among=request.among)
            if choice is not None:
                self._asked.add(request.key, self.router.seconds_of(choice), now)
            if choice is not None and self._may_pass(request, choice, now):
                self._passed += 1 if self._held else 0
                return self._send(request, choice, now)
        if len(self) >= self.most_requests or self._bytes + request.size > self.most_bytes:
            self.counts.refused += 1
            raise TooManyHeld(
                f"{len(self)} requests are waiting for a replica: try again in some seconds"
            )
        self.counts.arrived += 1
        self._held[request.number] = request
        self._bytes += request.size
        self._queues.setdefault(request.priority, _Queue()).add(request)
        return None

    def _may_pass(self, request: Request, choice: Choice, now: float) -> bool:
        """Whether a new request is sent at once.

        The requests of a flood do not wait in a replica, where they would delay those of the other
        keys.
        """
        if self._is_flood(request, now):
            return choice.starts_within(IDLE_SECONDS)
        return not self._is_late(choice)

    def _send(self, request: Request, choice: Choice, now: float) -> Pick:
        self._sent.add(request.key, self.router.seconds_of(choice), now)
        return self.router.send(request.number, request.prompt, choice)

    def _is_late(self, choice: Choice) -> bool:
        """Whether the first token is expected after the limit.

        A request whose prompt alone takes about as long as the limit may wait for `LONG_PROMPT` of
        the limit.
        """
        limit = self.router.ttft_seconds
        if choice.wait is None:
            return False
        return choice.wait.first_token > max(limit, choice.prompt_seconds + LONG_PROMPT * limit)

    def release(self, now: float) -> Iterator[tuple[Request, Pick]]:
        """Yield the held requests that have a replica now.

        Call this after each report of a replica, and after each first token or end of a request.
        Each call ends, because a replica that was given a request is no longer free.
        """
        while self._held:
            candidates = self._queues[max(self._queues)].first(
                CANDIDATES, lambda key: self._sent.work(key, now)
            )
            found = self._next(candidates, now)
            if found is None:
                return
            request, choice = found
            self._passed = 0 if request is candidates[0] else self._passed + 1
            self._queues[request.priority].remove(request)
            self._forget(request)
            self.counts.released += 1
            yield request, self._send(request, choice, now)

    def _next(self, candidates: Sequence[Request], now: float) -> tuple[Request, Choice] | None:
        """Return the held request that is sent now, and its replica.

        The first candidate whose best replica is free is sent there, because a replica needs less
        time for a prompt whose prefix it has cached. If no best replica is free, the first of all
        candidates is sent to any free replica. After `HELD_TURN` other dispatches, the first of all
        candidates is sent to its best replica, even if that replica is not free.
        """
        first = candidates[0]
        if self._passed >= HELD_TURN:
            choice = self.router.choose(first.prompt, now, among=first.among)
        elif not self.router.has_free(now, FREE_SECONDS):
            return None
        else:
            for request in candidates:
                choice = self.router.choose(request.prompt, now, among=request.among)
                if choice is not None and choice.starts_within(self._free_seconds(request, now)):
                    return request, choice
            most_wait = self._free_seconds(first, now)
            choice = self.router.choose(first.prompt, now, most_wait, first.among)
        return None if choice is None else (first, choice)

    def _free_seconds(self, request: Request, now: float) -> float:
        return IDLE_SECONDS if self._is_flood(request, now) else FREE_SECONDS

    def _is_flood(self, request: Request, now: float) -> bool:
        """Whether many requests of a key are held, and it asks for more than its share of work."""
        queue = self._queues.get(request.priority)
        held = 0 if queue is None else len(queue.of_key.get(request.key, ()))
        return held >= FLOOD_REQUESTS and self._asked.is_exceeded(request.key, now)

    def expired(self, now: float) -> list[Request]:
        """Remove the held requests whose deadline has passed, and return them."""
        late = [each for each in self._held.values() if each.deadline <= now]
        for request in late:
            self.leave(request.number, End.TIMED_OUT)
        return late

    def leave(self, number: int, end: End = End.CLIENT_LEFT) -> None:
        """Forget a request. Nothing happens if it is not held any more."""
        request = self._held.get(number)
        if request is None:
            return
        self._queues[request.priority].remove(request)
        self._forget(request)
        if end is End.TIMED_OUT:
            self.counts.timed_out += 1
        elif end is End.MOVED:
            self.counts.released += 1

    def _forget(self, request: Request) -> None:
        del self._held[request.number]
        self._bytes -= request.size
        if not self._queues[request.priority].of_key:
            del self._queues[request.priority]

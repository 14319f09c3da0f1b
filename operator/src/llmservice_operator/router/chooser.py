"""Knows the replicas of the service, and chooses one for each request."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Literal

from llmservice_operator.router.held import NoReplicaComes
from llmservice_operator.router.replica_view import ReplicaView
from llmservice_operator.routing.handover import (
    Ended,
    Message,
    OtherRouter,
    Started,
    Stored,
    sent,
)
from llmservice_operator.routing.holding import End, Holding, Request
from llmservice_operator.routing.limits import Limiter
from llmservice_operator.routing.owners import Owners, digest_of
from llmservice_operator.routing.prefixes import PrefixIndex
from llmservice_operator.routing.prompts import Prompt
from llmservice_operator.routing.replica import GUESSED_ANSWERS, Replica
from llmservice_operator.routing.router import Pick, Router

Policy = Literal["LeastWork", "LeastRequest"]

MOST_ADDRESSES: Final = 2
"""Largest number of replicas to which one request may be sent."""

SAME_MOMENT_SECONDS: Final = 0.1
"""A client that leaves at most this time in seconds before the end of its wait waited in full. A
wait of this length or less is none."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The replicas for a request."""

    number: int
    """Number of the request, which identifies the request when it ends."""
    pick: Pick
    addresses: Sequence[str]
    """Address and port of the chosen replica, and of another one if there is one."""
    reason: str
    """Reason of the pick: least_work or least_requests; held for the first replica that became free
    for a waiting request; or stored_response."""

    @property
    def replica(self) -> str:
        return self.pick.replica


@dataclass
class Chooser:
    """Chooses replicas among those that the supervisor has confirmed."""

    holding: Holding
    policy: Policy = "LeastWork"
    clock: Callable[[], float] = time.monotonic
    tell: Callable[[Message], None] = lambda _: None
    """Called with a message about each choice, first token and end, for the pickers that follow
    this one."""
    is_informed: bool = False
    """Whether the supervisor has told the picker which replicas exist."""
    owners: Owners = field(default_factory=Owners)
    """The replicas of stored responses."""
    limiter: Limiter | None = None
    """The limits of clients; None if they have none."""
    _address_of: dict[str, str] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)
    _waiting: dict[int, asyncio.Future[Chosen]] = field(default_factory=dict)
    """The held requests, by their numbers."""
    holds: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while a request is held."""
    _refusal: str | None = None
    """Sentence with which requests are refused while there is no replica. None if they wait."""

    @property
    def router(self) -> Router:
        return self.holding.router

    def update(self, replicas: Sequence[ReplicaView], refusal: str | None = None) -> None:
        """Replace the known replicas by those in a line from the supervisor.

        With a `refusal`, no replica will come. Without a replica, requests are then refused with
        this sentence instead of being held.
        """
        for name in self._address_of.keys() - {each.name for each in replicas}:
            self.router.remove(name)
            self.owners.forget(name)
            if self.limiter is not None:
                self.limiter.remove(name)
        self._address_of = {each.name: each.address for each in replicas}
        for each in replicas:
            # A replica without a report is chosen by the number of its requests.
            self.router.replicas.setdefault(each.name, Replica(self.router.prior, PrefixIndex(0)))
            self._hear(each)
            if each.is_draining:
                self.router.drain(each.name)
        self.is_informed = True
        self._refusal = refusal
        self._release()
        if self._refuses():
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(NoReplicaComes(refusal))

    def _refuses(self) -> bool:
        replicas = self.router.replicas.values()
        return self._refusal is not None and not any(each.is_open for each in replicas)

    def _hear(self, view: ReplicaView) -> None:
        replica, report = self.router.replicas[view.name], view.report
        if self.limiter is not None and report is not None and view.key_tokens is not None:
            at, tokens = report.at, view.key_tokens
            self.limiter.hear(view.name, report.started, at, tokens, self.clock())
        # A line repeats a report until the replica sends the next one.
        is_new = report is not None and (replica.report is None or replica.report.at != report.at)
        if report is not None and is_new and self.policy == "LeastWork":
            self.router.hear(view.name, report, view.cache_tokens, view.adapters)
            return
        replica.adapters = frozenset(view.adapters)
        if not replica.is_fresh(self.clock()):
            # Without recent reports, nothing else would end this state.
            replica.is_full = False

    def names_of(self, addresses: Container[str]) -> frozenset[str]:
        """Return the names of the usable replicas at these addresses."""
        return frozenset(
            name
            for name, address in self._address_of.items()
            if address in addresses and not self.router.replicas[name].is_draining
        )

    def choose_now(self, prompt: Prompt, among: frozenset[str] | None = None) -> Chosen | None:
        """Choose the replicas for a request that never waits; None if there is none."""
        number = next(self._numbers)
        pick = self.router.pick(number, prompt, self.clock(), among)
        return None if pick is None else self._chosen(number, prompt, pick, among)

    def choose_owner(
        self, identifier: str, prompt: Prompt, among: frozenset[str] | None = None
    ) -> Chosen | None:
        """Choose the replica that has stored a response; None if no usable replica is known.

        The request gets no second replica, because no other one has the response.
        """
        name = self.owners.find(identifier)
        if name is None or (among is not None and name not in among):
            return None
        choice = self.router.choose_owner(name, prompt, self.clock())
        if choice is None:
            return None
        number = next(self._numbers)
        pick = self.router.send(number, prompt, choice)
        self.tell(sent(number, prompt, pick))
        return Chosen(number, pick, (self._address_of[name],), "stored_response")

    def note_owner(self, identifier: str, address: str) -> None:
        """Note that the replica at an address has stored a response."""
        if name := self.name_of(address):
            self.owners.note(identifier, name)
            self.tell(Stored(name, digest_of(identifier)))

    def name_of(self, address: str) -> str:
        """Return the name of the replica at an address; empty if there is none."""
        return next((name for name, each in self._address_of.items() if each == address), "")

    async def choose(
        self,
        prompt: Prompt,
        size: int,
        key: str,
        seconds: float,
        on_wait: Callable[[], Awaitable[None]],
        among: frozenset[str] | None = None,
        *,
        waits_elsewhere: bool = False,
    ) -> Chosen | None:
        """Choose the replicas for a request with a body of `size` bytes from the owner of `key`.

        With `among`, only replicas with these names are chosen.
        While every replica would respond too late, or there is none, wait for at most `seconds`,
        and then return None. Call `on_wait` before the wait. `waits_elsewhere` says that the
        request goes on waiting after that. Raises TooManyHeld, and NoReplicaComes if no replica
        will come.
        """
        number = next(self._numbers)
        request = Request(number, prompt, size, key, among=among)
        pick = self.holding.pick(request, self.clock())
        if pick is not None:
            return self._chosen(number, prompt, pick, among)
        if self._refuses():
            self.holding.leave(number)
            raise NoReplicaComes(self._refusal)
        chosen = self._waiting[number] = asyncio.get_running_loop().create_future()
        is_over, begun = False, self.clock()
        self.holds.set()
        try:
            await on_wait()
            await asyncio.wait({chosen}, timeout=seconds)
            is_over = True
        finally:
            # The forwarder ends a wait at the same moment as this picker.
            is_late = SAME_MOMENT_SECONDS < seconds <= self.clock() - begun + SAME_MOMENT_SECONDS
            end = End.MOVED if waits_elsewhere else End.TIMED_OUT
            self.holding.leave(number, end if is_late else End.CLIENT_LEFT)
            del self._waiting[number]
            if not self._waiting:
                self.holds.clear()
            if chosen.done() and chosen.exception() is None and not is_over:  # the client left
                self.ended(chosen.result())
        return chosen.result() if chosen.done() else None

    def expected_tokens(self, prompt: Prompt) -> tuple[float, float]:
        """Return the expected tokens of a prompt, and those of its answer."""
        means = (each.answers.mean for each in self.router.replicas.values())
        mean = max(means, default=GUESSED_ANSWERS.mean)
        answer = self.router.answers.expected(prompt.source, mean)
        return prompt.size / self.router.bytes_per_token.value, answer

    def tokens_until(self, chosen: Chosen, begun: float | None, now: float) -> float:
        """Return how many tokens a request has probably used until a time.

        `begun` is the time at which its answer began. If it is None, the request was computed
        without an answer that the client could see.
        """
        dispatch, replica = chosen.pick.dispatch, self.router.replicas.get(chosen.replica)
        if begun is None:
            begun = dispatch.sent + (chosen.pick.seconds or 0.0)
        if replica is None or begun > now:
            return dispatch.tokens
        return dispatch.tokens + replica.answered(dispatch._replace(started=begun), now)

    def started(self, chosen: Chosen, address: str) -> None:
        """Note the first token of an answer, which came from `address`."""
        if address in chosen.addresses[1:]:
            # The first replica refused the request or ended, so it gets no further request until
            # its next report. The reports of the second replica count this request.
            self.router.ended(chosen.number, self.clock())
            self.router.refused(chosen.replica)
            self.tell(Ended(chosen.number))
        else:
            self.router.started(chosen.number, self.clock())
            self.tell(Started(chosen.number))
        self._release()

    def ended(self, chosen: Chosen) -> None:
        """Note the end of a request, whatever the result."""
        self.router.ended(chosen.number, self.clock())
        self.tell(Ended(chosen.number))
        self._release()

    def follow(self, other: OtherRouter, messages: Sequence[Message]) -> None:
        """Process messages of another picker."""
        for message in messages:
            other.apply(message, self.clock())
        self._release()

    def lose(self, other: OtherRouter) -> None:
        """Note that another picker sends no further messages."""
        other.leave()
        self._release()

    def _release(self) -> None:
        for request, pick in self.holding.release(self.clock()):
            chosen = self._chosen(
                request.number, request.prompt, pick, request.among, reason="held"
            )
            self._waiting[request.number].set_result(chosen)

    def _chosen(
        self,
        number: int,
        prompt: Prompt,
        pick: Pick,
        among: frozenset[str] | None = None,
        reason: str | None = None,
    ) -> Chosen:
        self.tell(sent(number, prompt, pick))
        others = sorted(
            (prompt.adapter not in replica.adapters, replica.requests, name)
            for name, replica in self.router.replicas.items()
            if name != pick.replica and replica.is_open and (among is None or name in among)
        )
        names = [pick.replica, *(name for *_, name in others[: MOST_ADDRESSES - 1])]
        foreseen = "least_requests" if pick.seconds is None else "least_work"
        addresses = [self._address_of[name] for name in names]
        return Chosen(number, pick, addresses, reason or foreseen)

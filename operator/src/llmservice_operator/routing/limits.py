"""Limits what each client uses in any minute, and how many requests it has in progress.

The tokens of a request are known only after its answer. Until then, the limiter reserves the most
tokens that the request should need. Later, it replaces the reservation by the tokens that the
replica has counted.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, floor, inf
from typing import Final, Literal, NamedTuple

from llmservice_operator.routing.settlements import Reservation, Settlements

MINUTE_SECONDS: Final = 60
CONCURRENT_RETRY_SECONDS: Final = 1.0
"""Time in seconds after which a client with too many requests in progress should try again. When
one of them ends is not known."""

MOST_CLIENTS: Final = 10_000
"""Maximum number of clients of other routers that are counted."""

ACTIVE_SECONDS: Final = 120.0
"""Time in seconds after its last admission for which a router counts tokens that belong to none of
its reservations. If a router that only follows another one counted them too, they would be counted
twice."""

LimitName = Literal["requests", "tokens", "concurrent"]


class Limits(NamedTuple):
    """Limits of one client. None is no limit."""

    requests: int | None = None
    """Requests in a minute."""
    tokens: int | None = None
    """Tokens of prompts and answers in a minute."""
    concurrent: int | None = None
    """Requests in progress."""


class Exceeded(NamedTuple):
    """A limit that a request would exceed."""

    name: LimitName
    limit: int
    seconds: float
    """Time until the request would be admitted. Infinite if it alone exceeds the limit."""


class Standing(NamedTuple):
    """What is left of the limit of a minute."""

    limit: int
    remaining: int
    reset_seconds: float
    """Time until the whole limit is available again, if no further request is sent."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Message to the routers that follow this one: a change of what a client uses."""

    client: str
    age: float
    """Seconds since the time to which the requests and tokens belong."""
    requests: int = 0
    tokens: float = 0.0
    in_progress: int = 0
    kind: Literal["counted"] = "counted"


@dataclass(frozen=True, slots=True)
class Used:
    """Part of a copy: what a client used in one second."""

    client: str
    age: float
    requests: int
    tokens: float
    kind: Literal["used"] = "used"


class _Amount(NamedTuple):
    requests: int = 0
    tokens: float = 0.0

    def plus(self, requests: int, tokens: float) -> "_Amount":
        return _Amount(self.requests + requests, self.tokens + tokens)


@dataclass
class _Window:
    """Amounts of the last minute, by the second.

    An amount counts until its whole second is a minute old. The requests that are admitted in any
    60 seconds therefore never exceed a limit.
    """

    _amounts: dict[int, _Amount] = field(default_factory=dict)

    def add(self, at: float, requests: int, tokens: float, now: float) -> None:
        """Add an amount to the second of a time. An amount that is too old has no effect."""
        second = floor(at)
        if self._is_current(second, now):
            before = self._amounts.get(second, _Amount())
            self._amounts[second] = before.plus(requests, tokens)

    def raise_to(self, at: float, requests: int, tokens: float, now: float) -> None:
        """Make the second of a time contain at least these amounts."""
        second = floor(at)
        if self._is_current(second, now):
            known = self._amounts.get(second, _Amount())
            self._amounts[second] = _Amount(
                max(known.requests, requests), max(known.tokens, tokens)
            )

    def amounts(self, now: float) -> dict[int, _Amount]:
        """Return the amounts that count, by their second, the oldest one first."""
        self._amounts = {
            second: each
            for second, each in sorted(self._amounts.items())
            if self._is_current(second, now)
        }
        return self._amounts

    def used(self, now: float) -> _Amount:
        """Return the sum of the last minute."""
        amounts = self.amounts(now).values()
        return _Amount(sum(each.requests for each in amounts), sum(each.tokens for each in amounts))

    def seconds_until_less(self, over: _Amount, now: float) -> float:
        """Return the seconds until both amounts `over` have become too old to count."""
        requests, tokens = over
        if requests <= 0 and tokens <= 0:
            return 0.0
        for second, each in self.amounts(now).items():
            requests, tokens = requests - each.requests, tokens - each.tokens
            if requests <= 0 and tokens <= 0:
                return _end_of(second) - now
        return inf

    def seconds_until_empty(self, now: float) -> float:
        return max((_end_of(second) - now for second in self.amounts(now)), default=0.0)

    def _is_current(self, second: int, now: float) -> bool:
        return _end_of(second) > now


def _end_of(second: int) -> float:
    """Return the time at which the amounts of a second no longer count."""
    return second + 1 + MINUTE_SECONDS


@dataclass
class _Client:
    """What one client uses."""

    window: _Window = field(default_factory=_Window)
    own: int = 0
    """Requests in progress of this router."""
    others: int = 0
    """Requests in progress of the routers that this one follows."""

    def is_idle(self, now: float) -> bool:
        return self.own == self.others == 0 and not self.window.amounts(now)


class Limiter:
    """Admits the requests of clients within their limits.

    A client is the owner of an API key, and is identified by the name of the key.
    """

    def __init__(self, default: Limits, of_client: Mapping[str, Limits] | None = None) -> None:
        self._default = default
        self._of_client = of_client or {}
        self.tell: Callable[[Counted], None] = lambda _: None
        """Called with each change, for the routers that follow this one."""
        self._clients: dict[str, _Client] = {}
        self._settlements = Settlements()
        self._admitted_at = -inf
        self._look_at = -inf

    def __len__(self) -> int:
        """Return the number of clients that are remembered."""
        return len(self._clients)

    def limits(self, client: str) -> Limits:
        return self._of_client.get(client, self._default)

    def why_not(self, client: str, tokens: float, now: float) -> Exceeded | None:
        """Return the limit that a request of `tokens` tokens would exceed; None if there is none.

        If there are several, the one is returned that holds for the longest time.
        """
        known, limits = self._clients.get(client, _Client()), self.limits(client)
        used, found = known.window.used(now), list[Exceeded]()
        if limits.requests is not None and used.requests >= limits.requests:
            over = _Amount(used.requests + 1 - limits.requests)
            wait = known.window.seconds_until_less(over, now)
            found.append(Exceeded("requests", limits.requests, wait))
        if limits.tokens is not None and used.tokens + tokens > limits.tokens:
            over = _Amount(0, used.tokens + tokens - limits.tokens)
            wait = inf if tokens > limits.tokens else known.window.seconds_until_less(over, now)
            found.append(Exceeded("tokens", limits.tokens, wait))
        if limits.concurrent is not None and known.own + known.others >= limits.concurrent:
            found.append(Exceeded("concurrent", limits.concurrent, CONCURRENT_RETRY_SECONDS))
        return max(found, key=lambda each: each.seconds, default=None)

    def admit(self, client: str, tokens: float, now: float) -> Reservation | Exceeded:
        """Count a request, and reserve `tokens` tokens for it.

        The caller must end or cancel each reservation once.
        """
        tokens = ceil(tokens)
        if exceeded := self.why_not(client, tokens, now):
            return exceeded
        self._forget_idle(now)
        self._admitted_at = now
        self._clients.setdefault(client, _Client()).own += 1
        self._count(client, now, 1, tokens, now, in_progress=1)
        return Reservation(client, now, tokens)

    def cancel(self, reservation: Reservation, now: float) -> None:
        """Give back all of a reservation, because no replica got the request."""
        self._clients[reservation.client].own -= 1
        self._count(reservation.client, reservation.at, -1, -reservation.tokens, now, -1)

    def sent(self, reservation: Reservation, replica: str) -> None:
        """Note which replica computes a request. Another call replaces the last one."""
        self._settlements.add(reservation, replica)

    def end(self, reservation: Reservation, spent: float, now: float) -> None:
        """Note that a request is no longer in progress.

        The request has used about `spent` tokens that the replica may never count, because the
        client has left. With 0, the replica's counters contain the whole request.
        """
        reservation.spent, reservation.ended = ceil(spent), now
        self._clients[reservation.client].own -= 1
        self._count(reservation.client, reservation.at, 0, 0.0, now, in_progress=-1)

    def end_elsewhere(self, reservation: Reservation, now: float) -> None:
        """Note the end of a request that was not sent to a replica by this reservation.

        Its replica has counted its tokens, which are counted as those of no reservation.
        """
        self._clients[reservation.client].own -= 1
        self._count(reservation.client, reservation.at, 0, -reservation.tokens, now, -1)

    def hear(
        self, replica: str, process: float, at: float, tokens: Mapping[str, float], now: float
    ) -> None:
        """Settle reservations by a replica's counters of tokens by client, as of the time `at`.

        `process` is the start time of the replica's process, with which its counters began.
        """
        for client, reservation, counted in self._settlements.hear(replica, process, at, tokens):
            if reservation is not None:
                self._count(client, reservation.at, 0, counted - reservation.tokens, now)
            elif now - self._admitted_at < ACTIVE_SECONDS:
                self._count(client, now, 0, counted, now)

    def remove(self, replica: str) -> None:
        """Forget a replica that has ended. The requests there keep their reservations."""
        self._settlements.remove(replica)

    def standing(self, client: str, now: float) -> Mapping[str, Standing]:
        """Return what is left of each limit of a minute."""
        window, limits = self._clients.get(client, _Client()).window, self.limits(client)
        used, reset = window.used(now), window.seconds_until_empty(now)
        amounts = (
            ("requests", limits.requests, used.requests),
            ("tokens", limits.tokens, ceil(used.tokens)),
        )
        return {
            name: Standing(limit, max(limit - amount, 0), reset)
            for name, limit, amount in amounts
            if limit is not None
        }

    def follow(self, told: Counted | Used, now: float) -> int:
        """Process a message of another router. Return the change of its requests in progress."""
        if told.client not in self._clients and len(self._clients) >= MOST_CLIENTS:
            self._forget_idle(now)
            if len(self._clients) >= MOST_CLIENTS:
                return 0
        client = self._clients.setdefault(told.client, _Client())
        if isinstance(told, Used):
            client.window.raise_to(now - told.age, told.requests, told.tokens, now)
            return 0
        client.window.add(now - told.age, told.requests, told.tokens, now)
        client.others += told.in_progress
        return told.in_progress

    def lose(self, client: str, in_progress: int) -> None:
        """Forget requests in progress of a router that tells nothing any more."""
        if client in self._clients:
            self._clients[client].others -= in_progress

    def copy(self, now: float) -> Iterator[Counted | Used]:
        """Yield what a router needs that begins to follow this one."""
        for name, client in self._clients.items():
            for second, each in client.window.amounts(now).items():
                # The middle of the second, because the other clock has other seconds.
                yield Used(name, max(now - second - 0.5, 0.0), each.requests, each.tokens)
            if client.own:
                yield Counted(name, 0.0, in_progress=client.own)

    def _count(
        self,
        client: str,
        at: float,
        requests: int,
        tokens: float,
        now: float,
        in_progress: int = 0,
    ) -> None:
        known = self._clients.setdefault(client, _Client())
        if requests or tokens:
            known.window.add(at, requests, tokens, now)
        if requests or tokens or in_progress:
            self.tell(Counted(client, now - at, requests, tokens, in_progress))

    def _forget_idle(self, now: float) -> None:
        """Forget the clients that use nothing, at most once in a minute."""
        if now < self._look_at:
            return
        self._look_at = now + MINUTE_SECONDS
        idle = [name for name, each in self._clients.items() if each.is_idle(now)]
        for name in idle:
            del self._clients[name]

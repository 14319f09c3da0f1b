"""Replaces reserved tokens by those that the replicas have counted.

A replica counts the tokens of the finished requests of each client, and does not tell them apart by
request. The tokens that it counts between two reports are divided among the requests of the client
that have ended there, the newest first. So no tokens move to an earlier time, from which they would
be forgotten too soon. If a client has left one request, and another router has sent another of the
same client, both within one report, then the tokens of the latter may be taken for the former.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final

SETTLE_SECONDS: Final = 0.2
"""Time in seconds between the end of a request and the report that settles it. A replica may report
shortly before it counts a request whose end the router has seen."""

TOGETHER: Final = "other"
"""Name under which a replica counts all clients beyond a number. The reservations of a client that
it does not count apart stay."""


@dataclass(slots=True, eq=False)
class Reservation:
    """Tokens that are reserved for one request."""

    client: str
    at: float
    """Time to which the tokens belong."""
    tokens: float
    spent: float = 0.0
    """Estimate of the tokens that were used, if the replica may not count them."""
    ended: float = inf
    """Time at which the request ended."""
    replica: str = ""
    """Replica whose reports will settle the reservation; empty if there is none."""

    def settled_by(self, counted: float) -> tuple[float, float]:
        """Return the tokens of the request if the replica has counted up to `counted` tokens, and
        how many of these are those of the request.

        A replica does not count a request whose client left before the end of the answer.
        """
        found = min(counted, self.tokens)
        return (found, found) if found >= self.spent / 2 else (min(self.spent, self.tokens), 0.0)


@dataclass(slots=True)
class _Replica:
    process: float
    totals: Mapping[str, float]
    """Tokens of each client in the last report."""
    counted: dict[str, float] = field(default_factory=dict)
    """Tokens of each client that are not divided yet."""
    open: dict[str, list[Reservation]] = field(default_factory=dict)
    """Reservations of each client that are not settled."""

    def count(self, totals: Mapping[str, float]) -> None:
        for client, total in totals.items():
            new = total - self.totals.get(client, 0.0)
            if new > 0:
                self.counted[client] = self.counted.get(client, 0.0) + new
        self.totals = totals


class Settlements:
    """The reservations at each replica that reports the tokens of clients."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}

    def add(self, reservation: Reservation, replica: str) -> None:
        """Let the replica's reports settle a reservation.

        If the replica has never reported tokens, the reservation stays as it is.
        """
        self._leave(reservation)
        if replica in self._replicas:
            reservation.replica = replica
            self._replicas[replica].open.setdefault(reservation.client, []).append(reservation)

    def hear(
        self, replica: str, process: float, at: float, totals: Mapping[str, float]
    ) -> Iterator[tuple[str, Reservation | None, float]]:
        """Process a report. Yield the client, the reservation that is settled, and its tokens.

        Without a reservation, the tokens belong to requests that had none, or exceed those that
        were reserved.
        """
        known = self._replicas.get(replica)
        if known is None:
            self._replicas[replica] = _Replica(process, totals)
            return
        if known.process != process:
            known.process, known.totals = process, {}
        known.count(totals)
        apart = {each for each in known.open if each in totals or TOGETHER not in totals}
        for client in known.counted.keys() | apart:
            yield from self._settle(known, client, at - SETTLE_SECONDS)

    def remove(self, replica: str) -> None:
        """Forget a replica. Its reservations are never settled."""
        known = self._replicas.pop(replica, None)
        for each in () if known is None else known.open.values():
            for reservation in each:
                reservation.replica = ""

    def _settle(
        self, known: _Replica, client: str, until: float
    ) -> Iterator[tuple[str, Reservation | None, float]]:
        reservations, counted = known.open.get(client, []), known.counted.pop(client, 0.0)
        # The replica has counted no request that is still in progress.
        ended = [each for each in reservations if each.ended < inf]
        kept = 0.0
        # The replica may never count a request whose client has left, so such a request gets what
        # no other one takes.
        for each in sorted(ended, key=lambda each: (each.spent > 0, -each.at)):
            if each.ended > until:
                # The tokens may belong to this request, which has just ended.
                taken = 0.0 if each.spent else min(counted, each.tokens)
                kept += taken
            else:
                reservations.remove(each)
                each.replica = ""
                tokens, taken = each.settled_by(counted)
                yield client, each, tokens
            counted -= taken
        if kept:
            known.counted[client] = kept
        if not reservations:
            known.open.pop(client, None)
        if counted > 0:
            yield client, None, counted

    def _leave(self, reservation: Reservation) -> None:
        if reservation.replica:
            open_ = self._replicas[reservation.replica].open
            open_[reservation.client].remove(reservation)
            reservation.replica = ""

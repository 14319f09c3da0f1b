"""Shares the services among the metrics servers, by rendezvous hashing.

Each service has a learner, which computes its load and stores what it has learned, and a follower,
which watches the same replicas and takes over. All metrics servers that know the same members
compute the same shares. A member that comes or goes moves no service between the other members.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Final

KEEPERS: Final = 2
"""Number of metrics servers that watch a service: its learner and its follower."""

MOST_REMEMBERED: Final = 2**15
"""Number of services whose keepers are remembered, because every round asks for them again."""

Key = tuple[str, str]
"""Namespace and name of an LLMService."""


class Ring:
    """The members among which the services are shared."""

    def __init__(self, members: Iterable[str]) -> None:
        self.members = tuple(sorted(set(members)))
        self.keepers = lru_cache(MOST_REMEMBERED)(self._keepers)
        """Returns the learner of a service, and then its follower if there are two members."""

    def _keepers(self, key: Key) -> tuple[str, ...]:
        name = "/".join(key)
        ranked = sorted(self.members, key=lambda member: _weight(member, name), reverse=True)
        return tuple(ranked[:KEEPERS])


def _weight(member: str, name: str) -> bytes:
    return blake2b(f"{member} {name}".encode(), digest_size=8).digest()


@dataclass(frozen=True)
class Shares:
    """The services of one metrics server, as it sees the members."""

    me: str
    ready: frozenset[str] = frozenset()
    """Members that answer for services. While none is Ready, those that are about to be."""
    _ring: Ring = field(init=False, repr=False, compare=False)
    _ring_with_me: Ring = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ring = Ring(self.ready or (self.me,))
        object.__setattr__(self, "_ring", ring)
        is_member = self.me in ring.members
        with_me = ring if is_member else Ring((*ring.members, self.me))
        object.__setattr__(self, "_ring_with_me", with_me)

    @property
    def others(self) -> tuple[str, ...]:
        """The other members that answer for services."""
        return tuple(member for member in self._ring.members if member != self.me)

    @property
    def are_divided(self) -> bool:
        """Whether there are services that this metrics server does not watch."""
        return len(self._ring_with_me.members) > KEEPERS

    def learner(self, key: Key) -> str:
        return self._ring.keepers(key)[0]

    def leads(self, key: Key) -> bool:
        """Return whether this metrics server is the learner of a service."""
        return self.learner(key) == self.me

    def keeps(self, key: Key) -> bool:
        """Return whether this metrics server watches a service.

        One that is not Ready yet watches the services that it will have, so that it knows their
        loads before it answers for them.
        """
        return self.me in self._ring_with_me.keepers(key)

"""Remembers which replica keeps an object, such as the response of `/v1/responses/{id}`."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

MOST_OBJECTS: Final = 100_000
DIGEST_BYTES: Final = 16
"""Size of the digest that is stored in place of an identifier. Identifiers come from replicas and
clients, and may be long."""


@dataclass
class Owners:
    """The replicas of the objects that were used most recently."""

    most: int = MOST_OBJECTS
    _replica_of: OrderedDict[bytes, str] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._replica_of)

    def note(self, identifier: str, replica: str) -> None:
        """Note that a replica keeps an object."""
        self.note_digest(digest_of(identifier), replica)

    def note_digest(self, digest: bytes, replica: str) -> None:
        """Note that a replica keeps the object with this digest."""
        self._replica_of[digest] = replica
        self._replica_of.move_to_end(digest)
        while len(self) > self.most:
            self._replica_of.popitem(last=False)

    def find(self, identifier: str) -> str | None:
        """Return the replica that keeps an object. None if it is not known."""
        digest = digest_of(identifier)
        if digest in self._replica_of:
            self._replica_of.move_to_end(digest)
        return self._replica_of.get(digest)

    def digests(self) -> Mapping[str, bytes]:
        """Return the digests of the objects of each replica, one after the other."""
        of_replica: dict[str, bytearray] = {}
        for digest, replica in self._replica_of.items():
            of_replica.setdefault(replica, bytearray()).extend(digest)
        return {replica: bytes(digests) for replica, digests in of_replica.items()}

    def forget(self, replica: str) -> None:
        """Forget the objects of a replica that has ended."""
        for digest in [key for key, name in self._replica_of.items() if name == replica]:
            del self._replica_of[digest]


def digest_of(identifier: str) -> bytes:
    return blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()

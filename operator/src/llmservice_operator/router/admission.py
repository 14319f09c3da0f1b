"""Decides from the headers of a request whether the router admits it.

The model server checks the same key again, because requests may reach it without a router.
"""

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

logger = logging.getLogger(__name__)

_LOOK_AGAIN_SECONDS = 1.0
"""Time in seconds between two checks of the files. The kubelet takes up to a minute to update a
mounted Secret."""

_OPEN_PATHS: Final = frozenset({"/health", "/ping"})
"""Paths that need no key. Requests to them do not wait for a replica."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that the router sends itself."""

    status: int
    message: str
    outcome: str
    """Word for the cause in the metrics."""
    headers: Mapping[str, str] = field(default_factory=dict)


class Client(NamedTuple):
    """The sender of a request."""

    name: str = ""
    """Name of the API key in the Secret. It is no secret. Empty if the request needs no key."""
    digest: str = ""
    """Digest of the API key. Empty if the request needs no key."""


NO_CLIENT: Final = Client()
NO_KEY: Final = Refusal(
    401,
    "send a valid API key in the header Authorization: Bearer KEY",
    "no_key",
    {"www-authenticate": "Bearer"},
)


class ApiKeys:
    """The valid API keys. Each file of a folder contains one key; several keys allow rotation.

    If the folder contains no key, no request that needs a key is admitted. While the folder cannot
    be read, the last keys stay valid.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._names: Mapping[bytes, str] = {}
        """The name of each key, by the digest of the key."""
        self._seen: object = None
        self._look_at = clock()

    def find(self, headers: Iterable[tuple[str, bytes]]) -> Client | None:
        """Return the owner of the valid key in the headers; None if they contain no valid key.

        OpenAI's clients send it in the header Authorization: Bearer, and Anthropic's clients in the
        header x-api-key.
        """
        self._follow()
        presented = [_digest(key) for name, value in headers for key in _keys_in(name, value)]
        # Every key is compared by its digest, so the time does not reveal which key matches, or how
        # many of its characters match.
        matches = [
            Client(name, valid.hex())
            for given in presented
            for valid, name in self._names.items()
            if hmac.compare_digest(given, valid)
        ]
        return matches[0] if matches else None

    def _follow(self) -> None:
        """Read the files again if they have changed."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_AGAIN_SECONDS
        try:
            files = [
                (path, path.stat())
                for path in sorted(self._directory.iterdir())
                # The kubelet's own links have names that start with two dots.
                if not path.name.startswith(".") and path.is_file()
            ]
            found = [(path.name, s.st_ino, s.st_mtime_ns, s.st_size) for path, s in files]
            if found == self._seen:
                return
            keys = {path.name: path.read_bytes().strip() for path, _ in files}
        except OSError as error:
            # A file may vanish while the kubelet replaces the folder.
            logger.warning(
                "the API keys could not be read (%s); keeping the current ones",
                os.strerror(error.errno or 0),
            )
            return
        self._names = {_digest(key): name for name, key in keys.items() if key}
        self._seen = found
        logger.info("read %d API keys", len(self._names))
        if not self._names:
            logger.error("there is no API key in the mounted Secret: every request is refused")


class Admission:
    """The rules for the headers of a request."""

    def __init__(self, keys: ApiKeys | None) -> None:
        """If `keys` is None, requests need no key."""
        self._keys = keys

    def admit(self, headers: Mapping[str, bytes]) -> Client | Refusal:
        """Return the sender, or a refusal if the headers contain no valid key."""
        if self._keys is None or is_open(headers):
            return NO_CLIENT
        return self._keys.find(headers.items()) or NO_KEY


def is_open(headers: Mapping[str, bytes]) -> bool:
    """Return whether a request needs no key and waits for no replica.

    These are health checks, and the preflight requests of browsers. The model server answers both.
    """
    method, path = headers.get(":method"), headers.get(":path", b"").partition(b"?")[0]
    if method == b"OPTIONS":
        return "origin" in headers and "access-control-request-method" in headers
    return method in (b"GET", b"HEAD") and path.decode("latin-1") in _OPEN_PATHS


def _keys_in(name: str, value: bytes) -> Iterable[bytes]:
    if name == "x-api-key":
        yield value.strip()
    elif name == "authorization":
        scheme, _, key = value.partition(b" ")
        if scheme.lower() == b"bearer":
            yield key.strip()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

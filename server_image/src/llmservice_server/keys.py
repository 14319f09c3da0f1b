"""Checks the keys of requests against a mounted Secret, which may change.

No key is logged. The name of a key is no secret.
"""

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_LOOK_AGAIN_SECONDS = 1.0
"""Time between two checks, in seconds. The kubelet itself takes up to a minute to update a mounted
Secret."""


@dataclass(frozen=True)
class ApiKey:
    """A valid API key."""

    name: str
    """Name of the key in the Secret."""
    digest: bytes


current_key_name: ContextVar[str | None] = ContextVar("current_key_name", default=None)
"""Name of the API key of the current HTTP request; None if the request needed none."""


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

    def find(self, headers: Iterable[tuple[bytes, bytes]]) -> ApiKey | None:
        """Return the valid key in the headers; None if they contain no valid key.

        OpenAI's clients send the key in the header Authorization: Bearer. Anthropic's clients send
        it to /v1/messages in the header x-api-key.
        """
        self._follow()
        presented = [key for name, value in headers for key in _keys_in(name, value)]
        # Every key is compared by its digest, so the time does not reveal which key matches, or how
        # many of its characters match.
        matches = [
            ApiKey(name, digest)
            for key in presented
            for digest, name in self._names.items()
            if hmac.compare_digest(_digest(key), digest)
        ]
        return matches[0] if matches else None

    def has_any(self) -> bool:
        """Return whether there is any valid key."""
        self._follow()
        return bool(self._names)

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
            # A file may have vanished while the kubelet replaced the folder. The next attempt is in
            # a second.
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


def _keys_in(name: bytes, value: bytes) -> Iterable[bytes]:
    if name == b"x-api-key":
        yield value.strip()
    elif name == b"authorization":
        scheme, _, key = value.partition(b" ")
        if scheme.lower() == b"bearer":
            yield key.strip()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

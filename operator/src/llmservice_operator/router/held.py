"""Bounds the requests that wait for a replica."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TooManyHeld(Exception):
    """The waiting requests, or the bytes of their bodies, would exceed a limit."""


class NoReplicaComes(Exception):
    """The request would wait for a replica that will not come. The text is for its client."""


class HeldRequests:
    """Counts the requests that wait for a replica, and the bytes of their bodies."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.number = 0
        self.size = 0

    @contextmanager
    def holding(self, size: int) -> Iterator[Callable[[int], None]]:
        """Count a request with a body of `size` bytes while the context is open.

        The context's value is a function that counts further bytes of the body. The context and
        this function raise TooManyHeld if the request would exceed a limit.
        """
        counted = 0

        def count(more: int) -> None:
            nonlocal counted
            if self.size + more > self._max_bytes:
                raise TooManyHeld
            self.size += more
            counted += more

        if self.number >= self._max_requests:
            raise TooManyHeld
        self.number += 1
        try:
            count(size)
            yield count
        finally:
            self.number -= 1
            self.size -= counted
